package proxy

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serveAlso has the rig serve another listener, until the test ends.
func (r *rig) serveAlso(ln net.Listener, config *tls.Config) {
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(ln, config) }()
	// Cleanup runs before the rig's: Serve returns when the listener is closed.
	r.t.Cleanup(func() {
		_ = ln.Close()
		if err := <-served; err != nil {
			r.t.Errorf("Serve: %v", err)
		}
	})
}

// selfSigned returns both ends' configuration of a TLS listener.
func selfSigned(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Config{NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		&tls.Config{RootCAs: roots, ServerName: "localhost"}
}

func messageRequest(body string) string {
	return fmt.Sprintf("POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: %s\r\nContent-Length: %d\r\n\r\n%s", testToken, len(body), body)
}

// Listeners beside plain TCP: the same requests, the same checks, and an agent
// that leaves is noticed in silence.
func TestListeners(t *testing.T) {
	arrived, closed := make(chan struct{}), make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		if strings.Contains(c.body, "stream") {
			c.sse()
			c.chunk(msgStart + msgBlock + msgHello)
			arrived <- struct{}{}
			_, _ = io.Copy(io.Discard, c)
			closed <- struct{}{}
			return
		}
		c.json(200, "", answer)
	})
	r := newRig(t, up.url(), 1)

	socket := filepath.Join(t.TempDir(), "agents.sock")
	unixListener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	r.serveAlso(unixListener, nil)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, client := selfSigned(t)
	r.serveAlso(tcp, server)

	dials := map[string]func() (net.Conn, error){
		"unix socket": func() (net.Conn, error) { return net.Dial("unix", socket) },
		"TLS":         func() (net.Conn, error) { return tls.Dial("tcp", tcp.Addr().String(), client) },
	}
	for name, dial := range dials {
		t.Run(name, func(t *testing.T) {
			c, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			br := bufio.NewReader(c)
			for range 3 {
				_, _ = io.WriteString(c, messageRequest(message))
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != answer || err != nil {
					t.Fatalf("%d %s, %v", resp.StatusCode, b, err)
				}
			}
			before := len(r.recorder.all())
			_, _ = io.WriteString(c, messageRequest(messageS))
			if _, err := br.Peek(1); err != nil {
				t.Fatal(err)
			}
			<-arrived
			_ = c.Close()
			select {
			case <-closed:
			case <-time.After(time.Second):
				t.Error("the upstream call goes on a second after the agent left")
			}
			if events := r.waitEvents(before + 1); !events[before].Estimated {
				t.Errorf("event %+v", events[before])
			}
		})
	}
	t.Run("bare LF under TLS", func(t *testing.T) {
		c, err := dials["TLS"]()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, strings.Replace(messageRequest(message), "\r\n", "\n", 1))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 400 {
			t.Errorf("%v %v", resp, err)
		}
	})
	if _, err := os.Stat(socket); err != nil {
		t.Error(err)
	}
}
