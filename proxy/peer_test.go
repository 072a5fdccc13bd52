package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/pool/agents"
)

// At a unix socket an agent is known by its user, as the kernel tells it: without a
// token, with bodies of any size, and with no other agent's token.
func TestAgentKnownByItsUser(t *testing.T) {
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		t.Skip("the system does not tell the user")
	}
	up := newUpstream(t, served)
	book := newBook(t)
	bob := create(t, book, agents.Agent{ID: "bob"})
	own := uint32(os.Getuid())
	for _, tt := range []struct {
		name, token string
		users       map[uint32]string
		body        string
		want        int
		agent       string
	}{
		{"no token", "", map[uint32]string{own: "alice"}, hello, 200, "alice"},
		{"a key of its own", "sk-dummy", map[uint32]string{own: "alice"}, hello, 200, "alice"},
		{"a large body", "", map[uint32]string{own: "alice"}, hello + strings.Repeat(" ", 2*strangerBody), 200, "alice"},
		{"its own token", testToken, map[uint32]string{own: "default"}, hello, 200, "default"},
		{"another's token", bob, map[uint32]string{own: "alice"}, hello, 401, ""},
		{"another user", "", map[uint32]string{own + 1: "alice"}, hello, 401, ""},
		{"another user with a token", bob, map[uint32]string{own + 1: "alice"}, hello, 200, "bob"},
		{"nobody by user", "", nil, hello, 401, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, up.url(), 1, knowing(book), func(o *rigOptions) { o.agents.Users(tt.users) })
			folder, err := os.MkdirTemp("", "peer") //nolint:usetesting // t.TempDir may be too long for a socket
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(folder) })
			ln, err := net.Listen("unix", filepath.Join(folder, "s"))
			if err != nil {
				t.Fatal(err)
			}
			r.serveAlso(ln, nil)
			c, err := net.Dial("unix", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			_, _ = fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: %s\r\nContent-Length: %d\r\n\r\n%s", tt.token, len(tt.body), tt.body)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.want {
				t.Errorf("%s %s", resp.Status, body)
			}
			if tt.want == 200 {
				if e := r.waitEvents(1)[0]; e.Agent != tt.agent {
					t.Errorf("it is counted as %s's", e.Agent)
				}
			}
			// Over TCP nobody is known by a user.
			if status, _, _ := r.asked("sk-dummy", "/v1/messages", hello); status != 401 {
				t.Errorf("over TCP: %d", status)
			}
		})
	}
}
