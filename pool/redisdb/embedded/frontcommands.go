package embedded

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"strings"
)

// answer carries out one request of a person, or says why not.
func (r *reader) answer(args []string) {
	peer := r.caller.peer
	name := strings.ToUpper(args[0])
	switch name {
	case "AUTH":
		r.auth(args[1:])
		return
	case "HELLO":
		r.hello(args[1:])
		return
	case "QUIT":
		peer.WriteOK()
		r.leave = true
		return
	}
	if !r.known {
		peer.WriteError("NOAUTH Authentication required.")
		return
	}
	switch name {
	case "PING", "ECHO", "TIME":
		r.front.store.run(r.caller, args)
	case "SELECT":
		r.selectDB(args[1:])
	case "CLIENT":
		r.client(args)
	case "COMMAND":
		r.command(args[1:])
	case "INFO":
		peer.WriteBulk(r.front.store.info())
	default:
		switch effects[name] {
		case reads:
			if !r.front.store.runRead(r.caller, args) {
				peer.WriteError("ERR the command failed with these arguments")
				r.leave = true
			}
		case unknown, control:
			peer.WriteError("ERR unknown command '" + printable(args[0]) + "' on this read-only port of authpool")
		default:
			peer.WriteError("ERR this port is read-only: '" + printable(args[0]) +
				"' is refused; change things with the commands of authpool")
		}
	}
}

// login takes a user name and a password. Comparing hashes of equal length in
// constant time tells nothing about the password but right or wrong.
func (r *reader) login(user, password string) bool {
	sum := sha256.Sum256([]byte(password))
	right := subtle.ConstantTimeCompare(sum[:], r.front.password[:]) == 1
	if user != "default" || !right {
		r.caller.peer.WriteError("WRONGPASS invalid username-password pair or user is disabled.")
		return false
	}
	r.known = true
	return true
}

func (r *reader) auth(args []string) {
	user := "default"
	if len(args) == 2 {
		user, args = args[0], args[1:]
	}
	if len(args) != 1 {
		r.wrongNumber("auth")
		return
	}
	if r.login(user, args[0]) {
		r.caller.peer.WriteOK()
	}
}

// hello implements HELLO [2|3 [AUTH user password] [SETNAME name]].
func (r *reader) hello(args []string) {
	peer := r.caller.peer
	resp3 := peer.Resp3
	if len(args) > 0 {
		if args[0] != "2" && args[0] != "3" {
			peer.WriteError("NOPROTO unsupported protocol version")
			return
		}
		resp3 = args[0] == "3"
		args = args[1:]
	}
	for len(args) > 0 {
		switch option := strings.ToUpper(args[0]); {
		case option == "AUTH" && len(args) >= 3:
			if !r.login(args[1], args[2]) {
				return
			}
			args = args[3:]
		case option == "SETNAME" && len(args) >= 2:
			args = args[2:]
		default:
			peer.WriteError("ERR Syntax error in HELLO")
			return
		}
	}
	if !r.known {
		peer.WriteError("NOAUTH HELLO must be called with the client already authenticated, or with AUTH default <password>")
		return
	}
	peer.Resp3 = resp3
	proto := 2
	if resp3 {
		proto = 3
	}
	peer.WriteMapLen(6)
	peer.WriteBulk("server")
	peer.WriteBulk("redis")
	peer.WriteBulk("version")
	peer.WriteBulk(speaks)
	peer.WriteBulk("proto")
	peer.WriteInt(proto)
	peer.WriteBulk("mode")
	peer.WriteBulk("standalone")
	peer.WriteBulk("role")
	peer.WriteBulk("master")
	peer.WriteBulk("modules")
	peer.WriteLen(0)
}

// speaks is the version of Redis whose commands the store follows.
const speaks = "7.0.0"

func (r *reader) selectDB(args []string) {
	switch {
	case len(args) != 1:
		r.wrongNumber("select")
	case args[0] != "0":
		r.caller.peer.WriteError("ERR DB index is out of range")
	default:
		r.caller.peer.WriteOK()
	}
}

// client answers what client libraries say about themselves.
func (r *reader) client(args []string) {
	peer := r.caller.peer
	if len(args) < 2 {
		r.wrongNumber("client")
		return
	}
	switch strings.ToUpper(args[1]) {
	case "SETINFO":
		peer.WriteOK()
	case "SETNAME", "GETNAME":
		r.front.store.run(r.caller, args)
	default:
		peer.WriteError("ERR unknown subcommand '" + printable(args[1]) + "' of CLIENT")
	}
}

// command answers redis-cli's question for the documentation of all commands with
// an empty one, upon which it uses its own.
func (r *reader) command(args []string) {
	peer := r.caller.peer
	switch {
	case len(args) > 0 && strings.EqualFold(args[0], "DOCS"):
		peer.WriteMapLen(0)
	case len(args) > 0 && strings.EqualFold(args[0], "COUNT"):
		peer.WriteInt(len(effects))
	default:
		peer.WriteLen(0)
	}
}

func (r *reader) wrongNumber(name string) {
	r.caller.peer.WriteError("ERR wrong number of arguments for '" + name + "' command")
}

// info is what INFO says, whatever section is asked for.
func (s *Store) info() string {
	saved := int64(0)
	if at := s.Saved(); !at.IsZero() {
		saved = at.Unix()
	}
	return fmt.Sprintf("# Server\r\nredis_version:%s\r\nredis_mode:standalone\r\nserver_name:authpool embedded\r\n"+
		"# Persistence\r\nrdb_last_save_time:%d\r\n# Replication\r\nrole:master\r\n", speaks, saved)
}
