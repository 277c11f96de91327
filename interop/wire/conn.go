package wire

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxFiles is how many descriptors one message may bring.
const maxFiles = 64

// inode names a file across processes.
type inode struct{ dev, ino uint64 }

func (i inode) url() string { return fmt.Sprintf("inode://%d/%d", i.dev, i.ino) }

func parseInode(text string) (inode, error) {
	rest, ok := strings.CutPrefix(text, "inode://")
	dev, ino, found := strings.Cut(rest, "/")
	if !ok || !found {
		return inode{}, fmt.Errorf("%q is no inode URL", text)
	}
	d, err := strconv.ParseUint(dev, 10, 64)
	if err != nil {
		return inode{}, err
	}
	i, err := strconv.ParseUint(ino, 10, 64)
	return inode{d, i}, err
}

func inodeOf(stat *unix.Stat_t) inode { return inode{uint64(stat.Dev), stat.Ino} }

// InodeURL names the file at a path.
func InodeURL(path string) (string, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return "", err
	}
	return inodeOf(&stat).url(), nil
}

// Conn is a unix stream that carries descriptors below TLS: each goes out with one byte of the stream.
type Conn struct {
	*net.UnixConn
	lock    sync.Mutex
	queued  []*os.File
	arrived map[inode]*os.File
	changed chan struct{}
}

// NewConn takes over a connection, before its first byte is read.
func NewConn(raw *net.UnixConn) *Conn {
	return &Conn{UnixConn: raw, arrived: map[inode]*os.File{}, changed: make(chan struct{})}
}

// Queue sends the file at a path with the next bytes written.
func (c *Conn) Queue(path string) error {
	if c == nil {
		return nil
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	c.lock.Lock()
	defer c.lock.Unlock()
	c.queued = append(c.queued, os.NewFile(uintptr(fd), path))
	return nil
}

func (c *Conn) Write(bytes []byte) (int, error) {
	c.lock.Lock()
	count := min(len(c.queued), maxFiles, len(bytes))
	files := c.queued[:count]
	c.queued = c.queued[count:]
	c.lock.Unlock()
	for at, file := range files {
		rights := unix.UnixRights(int(file.Fd()))
		_, _, err := c.WriteMsgUnix(bytes[at:at+1], rights, nil)
		_ = file.Close()
		if err != nil {
			return at, err
		}
	}
	written, err := c.UnixConn.Write(bytes[count:])
	return count + written, err
}

func (c *Conn) Read(bytes []byte) (int, error) {
	control := make([]byte, unix.CmsgSpace(maxFiles*4))
	read, length, _, _, err := c.ReadMsgUnix(bytes, control)
	read = max(read, 0)
	if length > 0 {
		if err := c.take(control[:length]); err != nil {
			return read, err
		}
	}
	if read == 0 && err == nil && len(bytes) > 0 {
		return 0, io.EOF
	}
	return read, err
}

func (c *Conn) take(control []byte) error {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return err
	}
	for _, message := range messages {
		descriptors, err := unix.ParseUnixRights(&message)
		if err != nil {
			return err
		}
		for _, fd := range descriptors {
			c.keep(fd)
		}
	}
	return nil
}

func (c *Conn) keep(fd int) {
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil {
		_ = unix.Close(fd)
		return
	}
	c.lock.Lock()
	defer c.lock.Unlock()
	key := inodeOf(&stat)
	if c.arrived[key] != nil {
		_ = unix.Close(fd)
		return
	}
	c.arrived[key] = os.NewFile(uintptr(fd), key.url())
	close(c.changed)
	c.changed = make(chan struct{})
}

// Wait waits for the file that an inode URL names and returns a descriptor of the caller's own.
func (c *Conn) Wait(ctx context.Context, url string) (*os.File, error) {
	key, err := parseInode(url)
	if err != nil {
		return nil, err
	}
	for {
		c.lock.Lock()
		file, changed := c.arrived[key], c.changed
		c.lock.Unlock()
		if file != nil {
			fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			return os.NewFile(uintptr(fd), url), err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("file %s did not arrive: %w", url, ctx.Err())
		}
	}
}

// Close drops all files that arrived and were not asked for.
func (c *Conn) Close() error {
	c.lock.Lock()
	for _, file := range c.queued {
		_ = file.Close()
	}
	for key, file := range c.arrived {
		_ = file.Close()
		delete(c.arrived, key)
	}
	c.queued = nil
	c.lock.Unlock()
	return c.UnixConn.Close()
}

// listener makes each accepted connection carry descriptors.
type listener struct{ *net.UnixListener }

func (l listener) Accept() (net.Conn, error) {
	raw, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return NewConn(raw), nil
}

// Listen serves unix:///path or tcp://host:port.
func Listen(url string) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(url, "unix://")
	if !isUnix {
		return net.Listen("tcp", strings.TrimPrefix(url, "tcp://"))
	}
	_ = os.Remove(path)
	raw, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return listener{raw}, os.Chmod(path, 0o777)
}

func dial(ctx context.Context, url string) (net.Conn, error) {
	path, isUnix := strings.CutPrefix(url, "unix://")
	if !isUnix {
		return (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(url, "tcp://"))
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return NewConn(raw.(*net.UnixConn)), nil
}
