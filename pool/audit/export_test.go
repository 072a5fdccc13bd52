package audit

import "os"

// OpenFailing is Open with a disk on which writes go through write.
func OpenFailing(o Options, write func(f *os.File, b []byte, off int64) (int, error)) (*Log, error) {
	return openWith(o, write)
}

// QueueRoom is how many entries wait for the disk, beside the batch that it is
// asked to take.
const QueueRoom, BatchRoom = queueRoom, batchRoom
