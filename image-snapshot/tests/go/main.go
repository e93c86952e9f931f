// Command tarjudge says what Go's archive/tar reads in each archive of a directory: a line of JSON for each, in the order of their names.
package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
)

type entry struct {
	Kind    string            `json:"kind"`
	Path    string            `json:"path"`
	Link    string            `json:"link"`
	Mode    int64             `json:"mode"`
	UID     int               `json:"uid"`
	GID     int               `json:"gid"`
	Seconds int64             `json:"seconds"`
	Nanos   int               `json:"nanos"`
	Major   int64             `json:"major"`
	Minor   int64             `json:"minor"`
	Size    int64             `json:"size"`
	Content string            `json:"content"`
	Xattrs  map[string]string `json:"xattrs"`
}

type archive struct {
	Entries []entry `json:"entries"`
	Error   string  `json:"error"`
}

var kinds = map[byte]string{
	tar.TypeReg: "file", tar.TypeCont: "file", tar.TypeGNUSparse: "file", tar.TypeLink: "hard link", tar.TypeSymlink: "symlink",
	tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeDir: "dir", tar.TypeFifo: "fifo",
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func read(name string) (out archive) {
	file, err := os.Open(name)
	if err != nil {
		out.Error = err.Error()
		return
	}
	defer file.Close()
	reader := tar.NewReader(file)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			out.Error = err.Error()
			return
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		one := entry{
			Kind: kinds[header.Typeflag], Path: b64(header.Name), Link: b64(header.Linkname), Mode: header.Mode & 0o7777,
			UID: header.Uid, GID: header.Gid, Seconds: header.ModTime.Unix(), Nanos: header.ModTime.Nanosecond(),
			Xattrs: map[string]string{},
		}
		if one.Kind == "char" || one.Kind == "block" {
			one.Major, one.Minor = header.Devmajor, header.Devminor
		}
		for key, value := range header.PAXRecords {
			if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
				one.Xattrs[b64(name)] = b64(value)
			}
		}
		sum := sha256.New()
		one.Size, err = io.Copy(sum, reader)
		if err != nil {
			out.Error = err.Error()
			return
		}
		one.Content = hex.EncodeToString(sum.Sum(nil))
		out.Entries = append(out.Entries, one)
	}
}

func main() {
	names, err := filepath.Glob(filepath.Join(os.Args[1], "*.tar"))
	if err != nil {
		panic(err)
	}
	encoder := json.NewEncoder(os.Stdout)
	for _, name := range names {
		if err := encoder.Encode(read(name)); err != nil {
			panic(err)
		}
	}
}
