package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/config/statedir"
)

// configFlags are the config file and the flags that rule over it.
type configFlags struct {
	file                           string
	listen, admin, redis, stateDir string
}

func (f *configFlags) register(cmd *cobra.Command) {
	d := config.Default()
	flags := cmd.Flags()
	flags.StringVarP(&f.file, "config", "c", "", "config file (default: none, subscriptions come from the environment)")
	flags.StringVar(&f.listen, "listen", d.Listen[0], "where agents connect: host:port or unix:/path, several separated by commas")
	flags.StringVar(&f.admin, "admin", d.Admin.Listen, "address of health, metrics and the admin API")
	flags.StringVar(&f.redis, "redis", "embedded", "redis://host:port[,host:port…]/db[?master=NAME], or env:NAME of a variable that holds such a URL")
	flags.StringVar(&f.stateDir, "state-dir", "", "folder of journal, snapshot and tokens (default: $XDG_STATE_HOME/authpool)")
}

// load reads the file, or the environment when there is none, lays the flags
// that were given over it, and checks the whole. What is wrong is wrong use.
func (f *configFlags) load(cmd *cobra.Command, p *program) (*config.Config, error) {
	cfg, err := f.read(p)
	if err != nil {
		return nil, err
	}
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		switch flag.Name {
		case "listen", "admin", "redis", "state-dir":
			origin := "--" + flag.Name
			if variable := flag.Annotations[fromVariable]; len(variable) > 0 {
				origin = "$" + variable[0]
			}
			cfg.Override(flag.Name, origin, flag.Value.String())
		}
	})
	if err := cfg.Validate(); err != nil {
		return nil, wrongUseError{err}
	}
	return cfg, nil
}

// loadWithState is load, and finds the state folder.
func (f *configFlags) loadWithState(cmd *cobra.Command, p *program) (cfg *config.Config, dir string, err error) {
	if cfg, err = f.load(cmd, p); err != nil {
		return nil, "", err
	}
	if dir, err = statedir.Path(cfg.StateDir, p.getenv); err != nil {
		return nil, "", wrongUseError{err}
	}
	return cfg, dir, nil
}

// read is the file, or what the environment says when none is named. A file
// that cannot be read is as wrong as one with faults.
func (f *configFlags) read(p *program) (*config.Config, error) {
	if f.file == "" {
		return config.FromEnv(p.environ), nil
	}
	cfg, err := config.Load(f.file)
	if err != nil {
		return nil, wrongUseError{err}
	}
	return cfg, nil
}
