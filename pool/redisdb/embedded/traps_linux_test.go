package embedded

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
)

// listening counts the sockets on which this process listens.
func listening(t *testing.T) int {
	t.Helper()
	own := map[string]bool{}
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range descriptors {
		if target, err := os.Readlink("/proc/self/fd/" + d.Name()); err == nil {
			own[target] = true
		}
	}
	n := 0
	for _, table := range []string{"tcp", "tcp6"} {
		file, err := os.Open("/proc/self/net/" + table)
		if os.IsNotExist(err) {
			continue // a machine without IPv6
		}
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			// Field 3 is the state, 0A is LISTEN; field 9 is the inode.
			if f := strings.Fields(lines.Text()); len(f) > 9 && f[3] == "0A" && own[fmt.Sprintf("socket:[%s]", f[9])] {
				n++
			}
		}
		_ = file.Close()
	}
	return n
}

// Trap: miniredis believes the length of a bulk before it asks for a password:
// four connections took 3.8 GB, and the largest length ended the process. So it
// has no port; the only one is the front's.
func TestTrapMiniredisListensNowhere(t *testing.T) {
	before := listening(t)
	s, client := open(t, Options{})
	if err := client.Ping(t.Context()).Err(); err != nil { // it runs
		t.Fatal(err)
	}
	if n := listening(t) - before; n != 0 {
		t.Errorf("%d ports are open without one asked for", n)
	}
	closeStore(t, s)
	s, _ = open(t, Options{Listen: "127.0.0.1:0"})
	if n := listening(t) - before; n != 1 {
		t.Errorf("%d ports are open, want that of the front", n)
	}
	closeStore(t, s)
	if n := listening(t) - before; n != 0 {
		t.Errorf("%d ports are open after the end", n)
	}
}
