// Command testcluster is a whole Kubernetes control plane in one program, for tests on one machine: etcd, the API
// server, the scheduler, the controller manager and kubectl, all of them the real ones.
//
//	testcluster COMPONENT [flags]          run one component: etcd, kube-apiserver, kube-scheduler,
//	                                       kube-controller-manager or kubectl, with the flags of that component
//	testcluster init DIR [flags]           write keys, certificates and kubeconfigs of a new cluster
//	testcluster node-credentials NAME      write what the node NAME needs to join
//	testcluster ports N                    print N free loopback ports
//
// A link named after a component (kubectl -> testcluster) runs that component.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	_ "time/tzdata" // time zones of CronJobs

	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// invokedAs is how this program was called, before os.Args became the component's own.
var invokedAs = os.Args[0]

// A program runs with os.Args as if it had been called by its own name and returns the exit status.
type program func() int

var programs = map[string]program{
	"etcd":                    runEtcd,
	"kube-apiserver":          func() int { return cli.Run(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() int { return cli.Run(controllermanager.NewControllerManagerCommand()) },
	"kube-scheduler":          func() int { return cli.Run(scheduler.NewSchedulerCommand()) },
	"kubectl":                 runKubectl,
	"init":                    runInit,
	"node-credentials":        runNodeCredentials,
	"ports":                   runPorts,
}

func runKubectl() int {
	logs.GlogSetter(kubectl.GetLogVerbosity(os.Args)) //nolint:errcheck // as kubectl's own main does
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err) // prints and exits
	}
	return 0
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, known := programs[name]; !known && len(os.Args) > 1 {
		name = os.Args[1]
		os.Args = append([]string{name}, os.Args[2:]...)
	}
	run, known := programs[name]
	if !known {
		names := make([]string, 0, len(programs))
		for n := range programs {
			names = append(names, n)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "usage: testcluster {%s} [argument ...]\n", strings.Join(names, "|"))
		os.Exit(2)
	}
	os.Exit(run())
}
