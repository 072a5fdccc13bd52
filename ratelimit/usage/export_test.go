package usage

// Windowed returns how many events r holds in memory. r must be at rest.
func Windowed(r *Recorder) int { return r.windowed }
