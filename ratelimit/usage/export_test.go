package usage

// Windowed returns how many events r holds in memory. r must be at rest.
func Windowed(r *Recorder) int { return r.windowed }

// HoldDisk keeps what is written to j from the disk until release is called.
func HoldDisk(j *Journal) (release func()) {
	j.syncing.Lock()
	return j.syncing.Unlock
}
