package wire

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/tap"
)

// recorded counts the calls of each method, by the directory's file names.
var recorded sync.Map

// maxRecords is how many calls of one method are kept: the first, and one that comes later.
const maxRecords = 2

// Record writes the headers of a call into INTEROP_RECORD, when that names a directory: one line a value, as `key: value`.
func Record(what string, headers metadata.MD) {
	dir := os.Getenv("INTEROP_RECORD")
	if dir == "" {
		return
	}
	what = strings.ReplaceAll(strings.TrimPrefix(what, "/"), "/", "-")
	for number := 1; number <= maxRecords; number++ {
		name := fmt.Sprintf("%s-%d.headers", what, number)
		if _, known := recorded.LoadOrStore(name, true); known {
			continue
		}
		var lines []string
		for key, values := range headers {
			for _, value := range values {
				lines = append(lines, key+": "+value+"\n")
			}
		}
		sort.Strings(lines)
		_ = os.WriteFile(filepath.Join(dir, name), []byte(strings.Join(lines, "")), 0o644)
		return
	}
}

func recordCall(ctx context.Context, info *tap.Info) (context.Context, error) {
	Record(info.FullMethodName, info.Header)
	return ctx, nil
}
