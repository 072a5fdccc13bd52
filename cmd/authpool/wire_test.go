package main

import (
	"testing"
	"time"

	"github.com/authpool/authpool/config"
)

// A request that waits for longer than failover.deadline may be refused by the first
// subscription that opens, and goes on then.
func TestDeadlineOutlastsTheWait(t *testing.T) {
	for _, tt := range []struct{ deadline, wait, want time.Duration }{
		{time.Minute, 30 * time.Second, time.Minute},
		{time.Minute, 3 * time.Minute, 3 * time.Minute},
	} {
		c := config.Default()
		c.Failover.Deadline, c.Failover.Wait = config.Duration(tt.deadline), config.Duration(tt.wait)
		if got := proxyOptionsFromConfig(c).Deadline; got != tt.want {
			t.Errorf("deadline %s, wait %s: no attempt after %s, want %s", tt.deadline, tt.wait, got, tt.want)
		}
	}
}
