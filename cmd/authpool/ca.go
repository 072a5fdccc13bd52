package main

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/config/statedir"
	"github.com/authpool/authpool/proxy/ca"
)

func newCACommand(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Manage the local certificate authority of proxy mode",
		Long: `In proxy mode agents trust a certificate authority of authpool's own, which is made
in the state folder and can sign for providers' hosts only. "authpool env --mode
proxy" and "authpool run" tell agents of it; export it for those on other machines.`,
		Example: "  authpool ca path\n  authpool ca export --out authpool-ca.pem\n  authpool ca rotate --overlap 720h",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCAPathCommand(p), newCAExportCommand(p), newCARotateCommand(p))
	return cmd
}

const (
	stateDirFlag  = "state-dir"
	stateDirUsage = "state folder of serve (default: $XDG_STATE_HOME/authpool)"
)

// authorityBundle is the file of authorities in a state folder, and what is in it.
func authorityBundle(p *program, stateDir string) (path string, text []byte, err error) {
	dir, err := statedir.Path(stateDir, p.getenv)
	if err != nil {
		return "", nil, wrongUseError{err}
	}
	path = filepath.Join(dir, authorityFolder, ca.BundleFile)
	text, err = os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, noAuthority(dir)
	}
	if err != nil {
		return "", nil, fmt.Errorf("cannot read the certificate authority: %w", err)
	}
	return path, text, nil
}

// noAuthority is for a state folder in which none was made.
func noAuthority(dir string) error {
	return fmt.Errorf("there is no certificate authority in %s: start \"authpool serve\" once, or name its folder by --state-dir", dir)
}

func newCAPathCommand(p *program) *cobra.Command {
	var stateDir string
	cmd := &cobra.Command{
		Use:   "path",
		Short: "Print where the file of authorities is that agents are to trust",
		Long: `Prints the path of the PEM file that holds authpool's authorities: the present one
and, after a rotation, the next. For what adds to the system's authorities, such as
NODE_EXTRA_CA_CERTS; bundle.pem beside it holds the system's, too, for what replaces
them, such as SSL_CERT_FILE.`,
		Example: "  NODE_EXTRA_CA_CERTS=$(authpool ca path) node agent.mjs",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			path, _, err := authorityBundle(p, stateDir)
			if err != nil {
				return err
			}
			return p.printf("%s\n", path)
		},
	}
	cmd.Flags().StringVar(&stateDir, stateDirFlag, "", stateDirUsage)
	return cmd
}

func newCAExportCommand(p *program) *cobra.Command {
	var stateDir, format, out string
	formats := []string{"pem", "der"}
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the authorities that agents are to trust, without their keys",
		Long: `Writes authpool's authorities to standard output or a file. pem holds all of them;
der holds one certificate, so that there must be one only, as there is until the first
rotation.`,
		Example: "  authpool ca export --out /usr/local/share/ca-certificates/authpool.crt && update-ca-certificates\n  authpool ca export --format der --out authpool.cer",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, text, err := authorityBundle(p, stateDir)
			if err != nil {
				return err
			}
			switch format {
			case "pem":
			case "der":
				block, rest := pem.Decode(text)
				if block == nil {
					return errors.New("cannot read the certificate authority: there is no certificate in its file")
				}
				if next, _ := pem.Decode(rest); next != nil {
					return errors.New("there are several authorities since the last rotation, and der holds one: use --format pem")
				}
				text = block.Bytes
			default:
				return wrongf("--format %q: want pem or der", format)
			}
			if out == "" {
				return p.printf("%s", text)
			}
			return replaceFile(out, text, 0o644)
		},
	}
	cmd.Flags().StringVar(&stateDir, stateDirFlag, "", stateDirUsage)
	cmd.Flags().StringVar(&format, "format", "pem", "pem or der")
	cmd.Flags().StringVar(&out, "out", "", "file to write (default: standard output)")
	completes(cmd, "format", formats)
	return cmd
}

func newCARotateCommand(p *program) *cobra.Command {
	var (
		file    configFlags
		overlap time.Duration
	)
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Make another authority, known to agents before it signs",
		Long: `Makes another authority and puts it beside the present one into the files that agents
trust. A running serve takes it over within a minute, without a restart, and signs with
it once --overlap is over: until then agents that read the files at their start are to
be started anew, and those elsewhere to be given "authpool ca export". --overlap 0
signs with it at once.

An authority whose key may be stolen is trusted until its folder, beside the file of
"authpool ca path", is deleted, and serve and agents are started anew.`,
		Example: "  authpool ca rotate\n  authpool ca rotate -c authpool.yaml --overlap 168h",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if overlap < 0 {
				return wrongf("--overlap %s: want 0 or more", overlap)
			}
			cfg, dir, err := file.loadWithState(cmd, p)
			if err != nil {
				return err
			}
			if _, err := os.Stat(dir); err != nil {
				return noAuthority(dir)
			}
			providers, err := newProvidersFromConfig(cfg)
			if err != nil {
				return err
			}
			authorities, err := ca.Open(filepath.Join(dir, authorityFolder), providers.Hosts())
			if err != nil {
				return err
			}
			from, err := authorities.Rotate(overlap)
			if err != nil {
				return err
			}
			if _, err := newTrust(dir, p.getenv); err != nil {
				return err
			}
			if overlap == 0 {
				return p.printf("The new authority signs from now on. Have agents trust %s.\n", authorities.BundlePath())
			}
			return p.printf("The new authority signs from %s on. Until then have agents trust %s.\n", from.UTC().Format(time.RFC3339), authorities.BundlePath())
		},
	}
	file.register(cmd)
	cmd.Flags().DurationVar(&overlap, "overlap", ca.Overlap, "how long it is made known before it signs")
	return cmd
}
