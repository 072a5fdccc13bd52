package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool"
)

// whileUsedFlag has serve end with the last "authpool run" that uses it.
const whileUsedFlag = "while-used"

// backgroundLog is what a background serve writes, in the state folder.
const backgroundLog = "serve.log"

// usedServe is the serve that an agent is to go through.
type usedServe struct {
	base  string // URL for agents
	asked *client
	hold  *hold
}

// findServe finds the serve that runs with the state folder dir, or starts one in the
// background that ends with the last agent that needs it.
func (p *program) findServe(ctx context.Context, cmd *cobra.Command, flags *configFlags, cfg *config.Config, dir string) (*usedServe, error) {
	h, err := openHold(dir)
	if err != nil {
		return nil, err
	}
	s := &usedServe{hold: h}
	if err := s.find(ctx, p, cmd, flags, cfg); err != nil {
		return nil, errors.Join(err, h.leave(context.WithoutCancel(ctx)))
	}
	return s, nil
}

func (s *usedServe) find(ctx context.Context, p *program, cmd *cobra.Command, flags *configFlags, cfg *config.Config) error {
	end, err := s.hold.turn(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := s.hold.share(ctx); err != nil {
		return err
	}
	silent, err := s.findRunning(ctx, p, cfg)
	if err != nil || s.asked != nil {
		return err
	}
	if answers(cfg.Admin.Listen) {
		return fmt.Errorf("cannot start a serve, for something else runs at %s: name a free address by --admin, or the folder of that serve by --state-dir: %w", cfg.Admin.Listen, silent)
	}
	b, err := startBackground(ctx, p, cmd, flags, s.hold)
	if err == nil {
		err = s.use(p, b)
	}
	if err != nil {
		return err
	}
	return s.useful(ctx)
}

// startLimit is how long a serve that has the state folder may take to answer: it may have
// been started a moment ago, or be another one's than the config tells.
const startLimit = 10 * time.Second

// findRunning looks for a serve that runs with the state folder. When none does, asked
// stays nil, and silent says why the config's address told of none.
func (s *usedServe) findRunning(ctx context.Context, p *program, cfg *config.Config) (silent, err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	err = waitFor(ctx, "the serve that has "+s.hold.dir+" to answer", func() (bool, error) {
		if b, ok := s.hold.background(); ok {
			return true, s.use(p, b)
		}
		asked, err := newClient(p, clientFlags{admin: cfg.Admin.Listen, stateDir: s.hold.dir})
		if err == nil {
			_, err = asked.status(ctx)
		}
		if silent = err; err != nil {
			return stateHolder(s.hold.dir) == 0, nil
		}
		s.asked = asked
		if s.base, err = agentBaseURL(cfg); err == nil {
			err = reachable(s.base)
		}
		return true, err
	})
	if err != nil && silent != nil {
		return nil, silent
	}
	return silent, err
}

// use asks the background serve from now on.
func (s *usedServe) use(p *program, b background) (err error) {
	s.base = b.Base
	s.asked, err = newClient(p, clientFlags{admin: b.Admin, stateDir: s.hold.dir})
	return err
}

// useful refuses a serve that has just been started and can serve nobody. It is gone when
// that is read, so that what tells more must not need it.
func (s *usedServe) useful(ctx context.Context) error {
	status, err := s.asked.status(ctx)
	if err != nil {
		return err
	}
	if len(status.Subscriptions) == 0 {
		return errNoSubscription
	}
	var not []string
	for i := range status.Subscriptions {
		one := &status.Subscriptions[i]
		if one.State != string(pool.StateDisabled) {
			return nil
		}
		not = append(not, one.ID+" ("+one.Reason+")")
	}
	return fmt.Errorf("no subscription can be used, disabled are %s: \"authpool check --resolve\" with the same config, or %s, tells why",
		strings.Join(not, ", "), filepath.Join(s.hold.dir, backgroundLog))
}

// answers tells whether a program listens on an address.
func answers(address string) bool {
	c, err := net.DialTimeout("tcp", dialable(address), time.Second)
	if err != nil {
		return false
	}
	_ = c.Close() // it was only a question
	return true
}

// reachable refuses a base URL at which nothing listens.
func reachable(base string) error {
	_, address, _ := strings.Cut(base, "://")
	if !answers(address) {
		return fmt.Errorf("authpool runs, but nothing listens at %s: name the address of the running serve by --listen or its config by -c", base)
	}
	return nil
}

// startBackground starts a serve that goes on while somebody holds h.
func startBackground(ctx context.Context, p *program, cmd *cobra.Command, flags *configFlags, h *hold) (background, error) {
	program, err := os.Executable()
	if err != nil {
		return background{}, fmt.Errorf("cannot start a serve: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(h.dir, backgroundLog), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return background{}, fmt.Errorf("cannot start a serve: %w", err)
	}
	serve := exec.Cmd{
		Path: program, Env: p.environ, Stdout: log, Stderr: log,
		Args: append([]string{"authpool", "serve", "--" + whileUsedFlag, "--state-dir", h.dir}, flags.given(cmd)...),
		// In a session of its own: what is typed at the agent's terminal is for the agent.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = serve.Start()
	if err = errors.Join(err, log.Close()); err != nil {
		return background{}, fmt.Errorf("cannot start a serve: %w", err)
	}
	ended := make(chan struct{}) // closed once the process is gone, which may be after us
	go func() {
		_ = serve.Wait() // its log says why
		close(ended)
	}()
	var b background
	err = waitFor(ctx, "a serve to start; see "+log.Name(), func() (bool, error) {
		var ok bool
		if b, ok = h.background(); ok {
			return true, nil
		}
		select {
		case <-ended:
			// Of two runs that begin together one has started it.
			if b, ok = h.background(); ok || stateHolder(h.dir) != 0 {
				return ok, nil
			}
			return false, fmt.Errorf("cannot start a serve: %s", lastLine(log.Name()))
		default:
			return false, nil
		}
	})
	return b, err
}

// lastLine is the last line of a log, which tells why a program has ended.
func lastLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.TrimPrefix(lines[len(lines)-1], "authpool: ")
}

// given are the flags of the command line but the state folder, for another command that
// has them. Those of variables it finds by itself.
func (f *configFlags) given(cmd *cobra.Command) []string {
	var args []string
	for name, value := range map[string]string{"config": f.file, "listen": f.listen, "admin": f.admin, "redis": f.redis} {
		if flag := cmd.Flags().Lookup(name); flag.Changed && len(flag.Annotations[fromVariable]) == 0 {
			args = append(args, "--"+name, value)
		}
	}
	return args
}

// spared has each config that load reads use free addresses instead of those that were
// taken when the first was read.
func spared(load func() (*config.Config, error)) func() (*config.Config, error) {
	var free map[string]string
	return func() (*config.Config, error) {
		cfg, err := load()
		if err != nil {
			return nil, err
		}
		if free == nil {
			free = spare(cfg)
		}
		moved(cfg, free)
		return cfg, nil
	}
}

// spare are the addresses of cfg that are taken, with free ones instead, by the flag or
// key that names them. A serve that nobody has started by hand has to run beside
// whatever is there.
func spare(cfg *config.Config) map[string]string {
	free := map[string]string{}
	taken := func(address string) bool {
		l, err := net.Listen("tcp", address)
		if err == nil {
			_ = l.Close() // it is free
		}
		return errors.Is(err, syscall.EADDRINUSE)
	}
	for _, address := range cfg.Listen {
		if !strings.HasPrefix(address, "unix:") && taken(address) {
			free[address] = "127.0.0.1:0"
		}
	}
	if taken(cfg.Admin.Listen) {
		free[cfg.Admin.Listen] = "127.0.0.1:0"
	}
	if r := cfg.Redis; r.Topology() == config.RedisEmbedded && r.Listen != "off" && taken(r.Listen) {
		free[r.Listen] = "off"
	}
	return free
}

// moved puts the free addresses in the place of the taken ones.
func moved(cfg *config.Config, free map[string]string) {
	for i, address := range cfg.Listen {
		if to, ok := free[address]; ok {
			cfg.Listen[i] = to
		}
	}
	if to, ok := free[cfg.Admin.Listen]; ok {
		cfg.Admin.Listen = to
	}
	if to, ok := free[cfg.Redis.Listen]; ok {
		cfg.Redis.Listen = to
	}
}

// whileUsed tells runs where this serve is, and closes unused once none holds it. The
// caller closes it when the serve has ended.
func (s *service) whileUsed() (h *hold, unused <-chan struct{}, err error) {
	h, err = openHold(s.dir.Path())
	if err != nil {
		return nil, nil, err
	}
	scheme := "http://"
	if s.cfg.TLS.Enabled() && !config.Loopback(s.agentAddress()) {
		scheme = "https://"
	}
	err = h.note(&background{PID: os.Getpid(), Base: scheme + dialable(s.agentAddress()), Admin: dialable(s.adminListener.Addr().String())})
	if err != nil {
		return nil, nil, errors.Join(err, h.f.Close())
	}
	ended := make(chan struct{})
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * holdPoll)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if alone, err := h.alone(); alone || err != nil {
					close(ended)
					return
				}
			}
		}
	}()
	s.onClose("use", func(context.Context) error { close(stop); <-done; return h.note(nil) })
	return h, ended, nil
}
