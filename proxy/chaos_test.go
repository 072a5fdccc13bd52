package proxy

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// Providers that fail in every way, agents that leave at any moment, and a
// shutdown in the middle of it: no request is lost track of, none is recorded
// twice, and nothing panics. goleak sees to the goroutines.
func TestChaos(t *testing.T) {
	for _, drain := range []bool{false, true} {
		t.Run(fmt.Sprintf("drain %v", drain), func(t *testing.T) {
			up := newUpstream(t, func(c *upstreamConn) {
				switch rand.IntN(12) {
				case 0:
					c.json(429, "", limited)
				case 1:
					c.json(529, "", busy)
				case 2: // nothing
				case 3:
					c.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
				case 4:
					c.sse()
					c.chunk(msgStart + msgError)
					c.last()
				case 5:
					c.sse()
					c.chunk(msgStart + msgBlock + msgHello)
				case 6:
					c.sse()
					c.chunk(msgStart + msgBlock + msgHello)
					_, _ = io.Copy(io.Discard, c)
				case 7:
					c.sse()
					c.chunk(msgStart)
					c.write("zz\r\n")
				case 8:
					c.write("garbage\r\n\r\n")
				case 9:
					_, _ = io.Copy(io.Discard, c)
				default:
					c.sse()
					for _, e := range []string{msgStart, msgBlock, msgHello, msgDelta, msgStop} {
						c.chunk(e)
					}
					c.last()
				}
			})
			r := newRig(t, up.url(), 4, func(o *rigOptions) {
				o.opts.DrainOnLeave = drain
				o.opts.Hold = 5 * time.Millisecond
				o.opts.Idle, o.transport.FirstByte = 100*time.Millisecond, 100*time.Millisecond
				o.opts.Deadline = time.Second
				o.pool.Wait = 10 * time.Millisecond
			})
			r.recorder.added = make(chan struct{}, 1<<16)
			var agents sync.WaitGroup
			for range 24 {
				agents.Go(func() {
					for range 12 {
						c, err := net.Dial("tcp", r.addr)
						if err != nil {
							return // the server has stopped
						}
						_ = c.SetDeadline(time.Now().Add(time.Duration(rand.IntN(60)) * time.Millisecond))
						_, _ = io.WriteString(c, strings.Replace(messageRequest(messageS), "\r\n", fmt.Sprintf("\r\nX-Authpool-Session: s%d\r\n", rand.IntN(50)), 1))
						_, _ = io.CopyN(io.Discard, c, int64(rand.IntN(2000)))
						_ = c.Close()
					}
				})
			}
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				agents.Wait()
			}()
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				for range 20 { // in the middle of it
					select {
					case <-r.recorder.added:
					case <-gone:
					}
				}
				ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
				defer cancel()
				_ = r.server.Shutdown(ctx)
			}()
			select {
			case <-stopped:
			case <-time.After(time.Minute):
				t.Fatal("Shutdown does not return")
			}
			<-gone
			for _, s := range r.pool.Status() {
				if s.InFlight != 0 {
					t.Errorf("%s: %d leases were not given back", s.ID, s.InFlight)
				}
			}
			seen := map[string]bool{}
			for _, e := range r.recorder.all() {
				if seen[e.ID] {
					t.Errorf("request %s was recorded twice", e.ID)
				}
				seen[e.ID] = true
			}
			if len(seen) == 0 {
				t.Error("nothing was recorded")
			}
			if log := r.log.text(); strings.Contains(log, "BUG") {
				t.Errorf("log: %s", log)
			}
		})
	}
}
