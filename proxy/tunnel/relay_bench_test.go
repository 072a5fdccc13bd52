package tunnel_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
)

// BenchmarkRelay downloads through a tunnel, and through io.Copy, which splices between
// sockets on Linux.
func BenchmarkRelay(b *testing.B) {
	const size = 64 << 20
	for name, carry := range map[string]func(agent, host *net.TCPConn){
		"tunnel": func(agent, host *net.TCPConn) {
			all := every(func(context.Context, netip.AddrPort) (net.Conn, error) { return host, nil })
			one, err := all.Open(context.Background(), "a", "files.example", 443)
			if err != nil {
				b.Error(err)
				return
			}
			one.Relay(context.Background(), agent, nil)
		},
		"splice": func(agent, host *net.TCPConn) {
			_, _ = io.Copy(agent, host)
			_ = agent.Close()
			_ = host.Close()
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				host, server := pair(b)
				lower, agent := pair(b)
				var all sync.WaitGroup
				all.Go(func() { carry(lower, host) })
				all.Go(func() {
					chunk := make([]byte, 256<<10)
					for range size / len(chunk) {
						_, _ = server.Write(chunk)
					}
					_ = server.Close()
				})
				if n, err := io.Copy(io.Discard, agent); n != size || err != nil {
					b.Errorf("%d bytes, %v", n, err)
				}
				_ = agent.Close()
				all.Wait()
			}
		})
	}
}
