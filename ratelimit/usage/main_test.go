package usage_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// childEnv makes the test binary a child that writes events until it is killed:
// see TestKilledWriter.
const childEnv = "AUTHPOOL_TEST_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		panic(writeUntilKilled(dir))
	}
	goleak.VerifyTestMain(m)
}
