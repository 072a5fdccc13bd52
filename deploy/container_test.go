package deploy_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/authpool/authpool/config"
)

// instructions are a Dockerfile's, continued lines joined.
func instructions(t *testing.T) (lines []string) {
	t.Helper()
	text := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(read(t, "Dockerfile"), "")
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestDockerfileFitsTheRepository(t *testing.T) {
	mod := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "../go.mod"))
	var last []string // instructions of the final stage
	for _, line := range instructions(t) {
		words := strings.Fields(line)
		switch words[0] {
		case "FROM":
			last = nil
			if strings.Contains(line, "golang:") && !strings.Contains(line, "golang:"+mod[1]+"-") {
				t.Errorf("%s, but go.mod says %s", line, mod[1])
			}
		case "COPY":
			if strings.HasPrefix(words[1], "--") {
				break // from another stage
			}
			for _, source := range words[1 : len(words)-1] {
				if _, err := os.Stat(filepath.Join("..", source)); err != nil {
					t.Errorf("%s: %v", line, err)
				}
			}
		case "RUN":
			if strings.Contains(line, "go build") {
				if !strings.Contains(line, "CGO_ENABLED=0") {
					t.Error("the binary is not static")
				}
				if _, err := os.Stat("../cmd/authpool"); err != nil || !slices.Contains(words, "./cmd/authpool") {
					t.Errorf("%s: %v", line, err)
				}
			}
		}
		last = append(last, line)
	}
	for _, want := range []string{
		"COPY --from=build /out/authpool /usr/local/bin/authpool",
		"USER 65532:65532",
		"ENV AUTHPOOL_STATE_DIR=" + stateDir,
		`ENTRYPOINT ["/usr/local/bin/authpool"]`,
		`CMD ["serve"]`,
	} {
		if !slices.Contains(last, want) {
			t.Errorf("the image lacks %s", want)
		}
	}
}

// stateDir is where all containers keep their state, on a volume at its parent.
const stateDir = "/var/lib/authpool/state"

type composeService struct {
	Build     struct{ Context, Dockerfile string }
	Command   []string
	Configs   []struct{ Source, Target string }
	Secrets   []string
	Volumes   []string
	Ports     []string
	Networks  []string
	DependsOn map[string]struct{ Condition string } `yaml:"depends_on"`
	Health    struct{ Test []string }               `yaml:"healthcheck"`
	ReadOnly  bool                                  `yaml:"read_only"`
	CapDrop   []string                              `yaml:"cap_drop"`
}

func TestComposeHangsTogether(t *testing.T) {
	var compose struct {
		Services map[string]composeService
		Configs  map[string]struct{ Content string }
		Secrets  map[string]struct{ Environment string }
		Networks map[string]struct{ Internal bool }
		Volumes  map[string]any
	}
	unmarshal(t, read(t, "compose.yaml"), &compose)

	for name, service := range compose.Services {
		known := func(kind string, names []string, in []string) {
			for _, n := range names {
				if !slices.Contains(in, n) {
					t.Errorf("%s: the %s %q is not declared", name, kind, n)
				}
			}
		}
		var volumes, configs []string
		for _, v := range service.Volumes {
			volume, _, _ := strings.Cut(v, ":")
			volumes = append(volumes, volume)
		}
		for _, c := range service.Configs {
			configs = append(configs, c.Source)
		}
		known("volume", volumes, slices.Collect(maps.Keys(compose.Volumes)))
		known("config", configs, slices.Collect(maps.Keys(compose.Configs)))
		known("secret", service.Secrets, slices.Collect(maps.Keys(compose.Secrets)))
		known("network", service.Networks, slices.Collect(maps.Keys(compose.Networks)))
		known("service", slices.Collect(maps.Keys(service.DependsOn)), slices.Collect(maps.Keys(compose.Services)))
		for _, port := range service.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: %s is published to other machines", name, port)
			}
		}
		if len(service.Health.Test) == 0 {
			t.Errorf("%s has no health check", name)
		}
	}

	authpool := compose.Services["authpool"]
	for _, path := range []string{authpool.Build.Context, filepath.Join(authpool.Build.Context, authpool.Build.Dockerfile)} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	if want := []string{"serve", "-c", authpool.Configs[0].Target}; !slices.Equal(authpool.Command, want) {
		t.Errorf("command is %q, want %q", authpool.Command, want)
	}
	if !slices.Contains(authpool.Volumes, "state:"+filepath.Dir(stateDir)) || !authpool.ReadOnly || !slices.Equal(authpool.CapDrop, []string{"ALL"}) {
		t.Errorf("authpool is not shut in, or its state not kept: %+v", authpool)
	}
	redis := strings.Join(compose.Services["redis"].Command, "\n")
	for _, setting := range []string{"appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction", "requirepass $$(cat /run/secrets/redis_password)"} {
		if !strings.Contains(redis, setting) {
			t.Errorf("redis runs without %q", setting)
		}
	}
	if compose.Networks["outside"].Internal || !compose.Networks["inside"].Internal || !slices.Equal(compose.Services["redis"].Networks, []string{"inside"}) {
		t.Error("Redis can be reached from outside")
	}

	c := parseConfig(t, "compose.yaml", compose.Configs["authpool"].Content)
	if c.StateDir != stateDir || c.Redis.Topology() != config.RedisSingle {
		t.Errorf("state in %s, redis %s", c.StateDir, c.Redis.Topology())
	}
	for _, ref := range refs(c) {
		secret, mounted := strings.CutPrefix(string(ref), "file:/run/secrets/")
		if !mounted || !slices.Contains(authpool.Secrets, secret) {
			t.Errorf("%s is not mounted", ref)
		}
	}
}

// refs are the secrets that a config needs.
func refs(c *config.Config) []config.Ref {
	list := []config.Ref{c.Redis.Password}
	for _, s := range c.Subscriptions {
		list = append(list, s.Credential.Value)
	}
	return list
}

type probe struct {
	HTTPGet struct {
		Path string
		Port string
	} `yaml:"httpGet"`
}

type container struct {
	Name            string
	Image           string
	RestartPolicy   string `yaml:"restartPolicy"`
	Args            []string
	Ports           []struct{ Name string }
	StartupProbe    probe `yaml:"startupProbe"`
	ReadinessProbe  probe `yaml:"readinessProbe"`
	LivenessProbe   probe `yaml:"livenessProbe"`
	SecurityContext struct {
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct{ Drop []string }
	} `yaml:"securityContext"`
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
	Env []struct{ Name, Value string }
}

type manifest struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name string }
	Data       map[string]string
	Spec       struct {
		Template struct {
			Spec struct {
				Grace           int `yaml:"terminationGracePeriodSeconds"`
				SecurityContext struct {
					RunAsNonRoot bool `yaml:"runAsNonRoot"`
					RunAsUser    int  `yaml:"runAsUser"`
					FSGroup      int  `yaml:"fsGroup"`
				} `yaml:"securityContext"`
				InitContainers []container `yaml:"initContainers"`
				Containers     []container
				Volumes        []struct {
					Name      string
					ConfigMap struct{ Name string } `yaml:"configMap"`
				}
			}
		}
		Claims []struct{ Metadata struct{ Name string } } `yaml:"volumeClaimTemplates"`
	}
}

func TestSidecarHangsTogether(t *testing.T) {
	documents := map[string]manifest{}
	decoder := yaml.NewDecoder(strings.NewReader(read(t, "sidecar.yaml")))
	for {
		var m manifest
		if err := decoder.Decode(&m); err != nil {
			break
		}
		documents[m.Kind] = m
	}
	pod := documents["StatefulSet"].Spec.Template.Spec
	if len(documents) != 3 || len(pod.InitContainers) != 1 || len(pod.Containers) != 1 {
		t.Fatalf("found %d documents, pod %+v", len(documents), pod)
	}

	sidecar := pod.InitContainers[0]
	if sidecar.RestartPolicy != "Always" {
		t.Error("without restartPolicy: Always it is an init container that the agent waits for")
	}
	for _, p := range []struct {
		probe
		path string
	}{{sidecar.StartupProbe, "/readyz"}, {sidecar.ReadinessProbe, "/readyz"}, {sidecar.LivenessProbe, "/healthz"}} {
		if p.HTTPGet.Path != p.path || p.HTTPGet.Port != sidecar.Ports[0].Name {
			t.Errorf("probe is %+v, want %s", p.probe, p.path)
		}
	}
	if s := sidecar.SecurityContext; s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
		t.Errorf("the sidecar is not shut in: %+v", s)
	}
	if s := pod.SecurityContext; !s.RunAsNonRoot || s.RunAsUser != 65532 || s.FSGroup != 65532 {
		t.Errorf("the pod runs as %+v", s)
	}

	var volumes []string
	for _, v := range pod.Volumes {
		volumes = append(volumes, v.Name)
		if name := v.ConfigMap.Name; name != "" && name != documents["ConfigMap"].Metadata.Name {
			t.Errorf("the config map %q does not exist", name)
		}
	}
	for _, claim := range documents["StatefulSet"].Spec.Claims {
		volumes = append(volumes, claim.Metadata.Name)
	}
	mounted := map[string]string{}
	for _, m := range sidecar.VolumeMounts {
		mounted[m.Name] = m.MountPath
		if !slices.Contains(volumes, m.Name) {
			t.Errorf("the volume %q does not exist", m.Name)
		}
	}

	name := filepath.Base(sidecar.Args[2])
	c := parseConfig(t, "sidecar.yaml", documents["ConfigMap"].Data[name])
	if want := []string{"serve", "-c", mounted["config"] + "/" + name}; !slices.Equal(sidecar.Args, want) {
		t.Errorf("args are %q, want %q", sidecar.Args, want)
	}
	if c.StateDir != stateDir || filepath.Dir(c.StateDir) != mounted["state"] {
		t.Errorf("state is in %s, the volume at %s", c.StateDir, mounted["state"])
	}
	for _, ref := range refs(c) {
		if !strings.HasPrefix(string(ref), "file:"+mounted["secrets"]+"/") {
			t.Errorf("%s is not mounted", ref)
		}
	}
	if config.Loopback(c.Admin.Listen) {
		t.Error("the kubelet cannot probe a loopback address")
	}
	for _, address := range c.Listen {
		if !config.Loopback(address) {
			t.Errorf("other pods can reach %s without a token", address)
		}
	}
	for _, e := range pod.Containers[0].Env {
		if strings.HasSuffix(e.Name, "_BASE_URL") && !strings.HasPrefix(e.Value, "http://"+c.Listen[0]) {
			t.Errorf("the agent goes to %s=%s, past authpool", e.Name, e.Value)
		}
	}
}
