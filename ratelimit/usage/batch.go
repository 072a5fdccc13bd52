package usage

// MaxBatch is the largest number of events in one Batch. It is large because
// events that count for the same agent, session and model cost Redis hardly more
// than one of them: what a call may do is bounded in rows, see merge.
const MaxBatch = 4096

// Batch is a run of one writer's events for one subscription. The writer has
// numbered them without a hole: Events[i] is number First+i.
type Batch struct {
	Subscription string
	Writer       string // who numbered them: random, see Journal
	Lives        Lives  // of the folder under Writer
	First        int64  // the number of Events[0], from 1
	Events       []Event
}

// Outcome is what Apply did with a Batch.
type Outcome uint8

// The outcomes. Only Applied changed anything.
const (
	Applied   Outcome = iota // counted, but for events that had been before
	Duplicate                // all of it had been counted before
	Gap                      // numbers before First are missing: send from Result.Last+1
	Fenced                   // another folder's events were counted under the writer's id
)

var outcomeNames = [...]string{"applied", "duplicate", "gap", "fenced"}

// String returns the outcome's name in metrics and errors.
func (o Outcome) String() string { return outcomeNames[o] }

// Result is the answer to a Batch.
type Result struct {
	Outcome Outcome
	Last    int64 // the last number counted of this writer
	// Applied is how many events were counted now, and Repeated how many were not
	// because another event tells of the same item of a provider's batch. Late are
	// those of Applied from before the current block. Outcome Applied only.
	Applied, Repeated, Late int64
	// Fork is the last number that means the same event in both folders; -1 when
	// that cannot be told. Outcome Fenced only, so it is less than Last.
	Fork int64
}
