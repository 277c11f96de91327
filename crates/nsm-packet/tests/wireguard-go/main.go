// A wireguard-go device for tests and comparisons: called with the name and the MTU of the interface and the
// file of the namespace in which it is to be; the socket is where the process is. The configuration comes on standard
// input, in the format of the "set" operation, ended by an empty line; "ready" is the answer, and the end of standard
// input is the end.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

func fail(what string, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, what+":", err)
		os.Exit(1)
	}
}

func start(name string, mtu int, pod string) *device.Device {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	fail("own namespace", err)
	inside, err := os.Open(pod)
	fail("the pod", err)
	fail("enter the pod", unix.Setns(int(inside.Fd()), unix.CLONE_NEWNET))
	made, err := tun.CreateTUN(name, mtu)
	fail("make the interface", err)
	// It asks for the MTU by name, here, and again when that changes, which then fails and is logged.
	log := &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
	started := device.NewDevice(made, conn.NewDefaultBind(), log)
	fail("return", unix.Setns(int(home.Fd()), unix.CLONE_NEWNET))
	return started
}

func main() {
	mtu, err := strconv.Atoi(os.Args[2])
	fail("MTU", err)
	made := start(os.Args[1], mtu, os.Args[3])
	lines := bufio.NewScanner(os.Stdin)
	var config strings.Builder
	for lines.Scan() && lines.Text() != "" {
		config.WriteString(lines.Text() + "\n")
	}
	fail("configure", made.IpcSet(config.String()))
	fail("start", made.Up())
	fmt.Println("ready")
	for lines.Scan() {
	}
	made.Close()
}
