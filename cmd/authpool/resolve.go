package main

import (
	"context"
	"fmt"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/seal"
)

// resolveSecrets reads every secret that the config refers to and tells all
// that cannot be used, each with the place where it was written. Nothing is kept.
func resolveSecrets(ctx context.Context, cfg *config.Config) error {
	var faults config.Faults
	try := func(field string, ref config.Ref, check func(credential.Secret) error) {
		if ref == "" {
			return
		}
		secret, err := resolve(ctx, ref)
		if err == nil && check != nil {
			if err = check(secret); err != nil {
				err = fmt.Errorf("cannot use %s: %w", ref, err)
			}
		}
		if err != nil {
			faults = append(faults, cfg.FaultAt(field, err.Error(), "a variable that is set, or a file that can be read"))
		}
	}
	for i, s := range cfg.Subscriptions {
		try(fmt.Sprintf("subscriptions[%d].credential.value", i), s.Credential.Value, credential.Check)
	}
	for i, n := range cfg.Notifications {
		try(fmt.Sprintf("notifications[%d].secret", i), n.Secret, nil)
	}
	try("admin.token", cfg.Admin.Token, nil)
	try("admin.viewer_token", cfg.Admin.Viewer, nil)
	try("redis.password", cfg.Redis.Password, nil)
	try("egress.password", cfg.Egress.Password, nil)
	try("sealing.keyset", cfg.Sealing.Keyset, func(text credential.Secret) error {
		_, err := seal.Open(text)
		return err
	})
	if ref, ok := cfg.Redis.URLRef(); ok {
		try("redis.url", ref, func(url credential.Secret) error {
			opts := redisOptions(cfg.Redis)
			opts.URL = url
			return opts.Check()
		})
	}
	if len(faults) == 0 {
		return nil
	}
	return wrongUseError{faults}
}

// resolve reads the secret behind a reference of the config.
func resolve(ctx context.Context, ref config.Ref) (credential.Secret, error) {
	r, err := credential.ParseRef(string(ref))
	if err != nil {
		return credential.Secret{}, err
	}
	return r.Resolve(ctx)
}
