package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
)

// runNodeCredentials writes what a node needs to join this cluster and to serve the kubelet API in it:
//
//	node.kubeconfig             client system:node:NAME in system:nodes
//	kubelet.crt, kubelet.key    serving certificate, which the API server trusts
//	ca.crt                      who signs the API server's client certificate
//
// and prints the directory.
func runNodeCredentials() int {
	flags := flag.NewFlagSet("node-credentials", flag.ExitOnError)
	dir := flags.String("dir", "", "the cluster's state directory (default: where this program's link lies)")
	out := flags.String("out", "", "where to write (default: DIR/nodes/NAME)")
	addresses := flags.String("addresses", "127.0.0.1", "where the node serves, with commas between")
	arguments := os.Args[1:]
	var names []string
	for len(arguments) > 0 { // flags may stand on either side of NAME
		_ = flags.Parse(arguments)
		if flags.NArg() == 0 {
			break
		}
		names, arguments = append(names, flags.Arg(0)), flags.Args()[1:]
	}
	if len(names) != 1 {
		fmt.Fprintln(os.Stderr, "usage: testcluster node-credentials NAME [--dir DIR] [--out OUT] [--addresses A,B]")
		return 2
	}
	if *dir == "" {
		here, err := filepath.Abs(filepath.Dir(invokedAs))
		if err != nil {
			fmt.Fprintf(os.Stderr, "node-credentials: no --dir, and where this program lies is not known: %v\n", err)
			return 1
		}
		*dir = here
	}
	if *out == "" {
		*out = filepath.Join(*dir, "nodes", names[0])
	}
	if err := issueNode(*dir, *out, names[0], strings.Split(*addresses, ",")); err != nil {
		fmt.Fprintf(os.Stderr, "node-credentials: %v\n", err)
		return 1
	}
	fmt.Println(*out)
	return 0
}

func issueNode(dir, out, name string, addresses []string) error {
	ca, err := readAuthority(dir)
	if err != nil {
		return err
	}
	admin, err := clientcmd.LoadFromFile(filepath.Join(dir, "admin.kubeconfig"))
	if err != nil {
		return fmt.Errorf("read the cluster's address: %w", err)
	}
	cluster, known := admin.Clusters["testcluster"]
	if !known {
		return fmt.Errorf("admin.kubeconfig in %s is of another cluster", dir)
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", out, err)
	}
	user, groups := "system:node:"+name, []string{"system:nodes"}
	if err := ca.issueKubeconfig(out, "node", cluster.Server, identity{name: user, groups: groups}); err != nil {
		return err
	}
	serves := append([]string{name}, addresses...)
	if err := ca.issue(out, "kubelet", identity{name: user, groups: groups, serves: serves}); err != nil {
		return err
	}
	path := filepath.Join(out, "ca.crt")
	if err := os.WriteFile(path, pemOf(ca.certificate.Raw), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
