// Package e2e proves the whole program: the real binary as a process of its own, real clients, real sockets, a real
// Redis where there is one, and the simulator's ledger as the witness of what was spent.
//
// Everything is in the tests. harness_test.go starts and stops programs; each other file tells one story: clients
// that count alike (gosdk), every known client as base URL and as proxy (clients), agents that finish their turns, secrets that stay secret, stops and kills, Redis going
// away, two processes as one.
package e2e
