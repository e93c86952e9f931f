package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// runInit writes what the components of a new cluster read: the authority (ca), the API server's certificates
// (apiserver, apiserver-kubelet-client), the service-account keys (sa) and one kubeconfig per client. The last file
// that it writes is admin.kubeconfig: a directory that has it is complete.
func runInit() int {
	flags := flag.NewFlagSet("init", flag.ExitOnError)
	dir := flags.String("dir", "", "where to write")
	port := flags.Int("apiserver-port", 0, "loopback port of the API server")
	serviceIP := flags.String("service-ip", "10.96.0.1", "address of the service 'kubernetes'")
	_ = flags.Parse(os.Args[1:])
	if *dir == "" || *port == 0 {
		fmt.Fprintln(os.Stderr, "init: --dir and --apiserver-port are needed")
		return 2
	}
	if err := initCluster(*dir, *port, *serviceIP); err != nil {
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
		return 1
	}
	return 0
}

func initCluster(dir string, port int, serviceIP string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	ca, err := newAuthority(dir)
	if err != nil {
		return err
	}
	if err := writeServiceAccountKeys(dir); err != nil {
		return err
	}
	serves := []string{
		"127.0.0.1", serviceIP, "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local",
	}
	if err := ca.issue(dir, "apiserver", identity{name: "kube-apiserver", serves: serves}); err != nil {
		return err
	}
	// `up` binds this user to system:kubelet-api-admin.
	if err := ca.issue(dir, "apiserver-kubelet-client", identity{name: "kube-apiserver-kubelet-client"}); err != nil {
		return err
	}
	server := fmt.Sprintf("https://127.0.0.1:%d", port)
	clients := []struct {
		file string
		who  identity
	}{
		{"controller-manager", identity{name: "system:kube-controller-manager"}},
		{"scheduler", identity{name: "system:kube-scheduler"}},
		{"admin", identity{name: "admin", groups: []string{"system:masters"}}},
	}
	for _, client := range clients {
		if err := ca.issueKubeconfig(dir, client.file, server, client.who); err != nil {
			return err
		}
	}
	return nil
}

// issueKubeconfig writes DIR/FILE.kubeconfig for who, with everything it needs inside.
func (a *authority) issueKubeconfig(dir, file, server string, who identity) error {
	scratch, err := os.MkdirTemp(dir, ".issue-")
	if err != nil {
		return fmt.Errorf("make a scratch directory: %w", err)
	}
	defer os.RemoveAll(scratch)
	if err := a.issue(scratch, "client", who); err != nil {
		return err
	}
	certificate, err := os.ReadFile(filepath.Join(scratch, "client.crt"))
	if err != nil {
		return fmt.Errorf("read the certificate of %s: %w", who.name, err)
	}
	key, err := os.ReadFile(filepath.Join(scratch, "client.key"))
	if err != nil {
		return fmt.Errorf("read the key of %s: %w", who.name, err)
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["testcluster"] = &clientcmdapi.Cluster{
		Server:                   server,
		CertificateAuthorityData: pemOf(a.certificate.Raw),
	}
	config.AuthInfos[who.name] = &clientcmdapi.AuthInfo{ClientCertificateData: certificate, ClientKeyData: key}
	config.Contexts["testcluster"] = &clientcmdapi.Context{Cluster: "testcluster", AuthInfo: who.name}
	config.CurrentContext = "testcluster"
	path := filepath.Join(dir, file+".kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// runPorts prints free loopback ports, one a line. They are all held until the last is known, so they differ.
func runPorts() int {
	count := 0
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "ports: one argument is needed: how many")
		return 2
	}
	if _, err := fmt.Sscanf(os.Args[1], "%d", &count); err != nil {
		fmt.Fprintf(os.Stderr, "ports: %q is not a number\n", os.Args[1])
		return 2
	}
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			fmt.Fprintf(os.Stderr, "ports: cannot listen: %v\n", err)
			return 1
		}
		defer listener.Close()
		fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	}
	return 0
}
