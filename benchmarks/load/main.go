// The load: visitors of what is measured, or their target.
//
//	load -listen HOST:PORT
//	load -visit HOST:PORT[,HOST:PORT...] -kind KIND -parallel N -for DURATION
//
// Each connection goes to the next address. The target takes TCP and UDP and does what the first byte of a connection says, as KIND has it:
//
//	bulk         each visitor sends as fast as it can
//	requests     each visitor asks again and again on the connection that it has
//	connections  each visitor connects anew for every request, and the target closes
//	latency      requests one at a time, in turn on N connections, with a pause after each
//	udp          N datagrams are on their way at a time; the target sends them back
//	idle         N connections that have said a word each are held until the program is ended
//
// One line of JSON tells how much was done, in how many seconds.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	requestSize  = 100
	responseSize = 300
	datagramSize = 200
	blockSize    = 256 * 1024
	// Every connection is made, and buffers have grown, before anything is counted.
	warmUp = 200 * time.Millisecond
	// Between two requests of the light load.
	pause = 500 * time.Microsecond
	// A datagram that has not come back by then is lost.
	lost = 50 * time.Millisecond
)

var (
	listen   = flag.String("listen", "", "where to be the target")
	kind     = flag.String("kind", "", "bulk, requests, connections, latency, udp or idle")
	visit    = flag.String("visit", "", "where visitors connect, in turn")
	parallel = flag.Int("parallel", 1, "visitors at a time")
	lasting  = flag.Duration("for", time.Second, "how long to measure")

	visits   []string
	visited  atomic.Int64
	total    atomic.Int64 // bytes, requests or datagrams
	warm     atomic.Bool
	stopping atomic.Bool

	lock      sync.Mutex
	latencies []time.Duration

	held []any // what must not be collected, and so closed
)

func main() {
	flag.Parse()
	visits = strings.Split(*visit, ",")
	switch {
	case *listen != "":
		go echoDatagrams()
		serve()
	case *kind == "idle":
		idle()
	default:
		load()
	}
}

func load() {
	visitor, count := map[string]func(){
		"bulk": send, "requests": ask, "connections": connectAndAsk, "latency": askSlowly, "udp": ping,
	}[*kind], *parallel
	if visitor == nil {
		log.Fatalf("unknown kind %q", *kind)
	}
	if *kind == "latency" || *kind == "udp" {
		count = 1
	}
	var visitors sync.WaitGroup
	for ; count > 0; count-- {
		visitors.Add(1)
		go func() {
			defer visitors.Done()
			visitor()
		}()
	}
	time.Sleep(warmUp)
	warm.Store(true)
	before, began := total.Load(), time.Now()
	time.Sleep(*lasting)
	counted, took := total.Load()-before, time.Since(began)
	stopping.Store(true)
	visitors.Wait()
	report(counted, took)
}

func report(counted int64, took time.Duration) {
	result := map[string]any{
		"counted": counted,
		"seconds": took.Seconds(),
		"total":   total.Load(), // with what came before and after, as CPU time is taken of all
	}
	if all := latencies; len(all) > 0 {
		sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
		result["p50"] = all[len(all)/2].Seconds()
		result["p99"] = all[len(all)*99/100].Seconds()
	}
	json.NewEncoder(os.Stdout).Encode(result)
}

// The visitors.

func next() string {
	return visits[visited.Add(1)%int64(len(visits))]
}

func connect(first string) *net.TCPConn {
	connection, err := net.Dial("tcp", next())
	check(err)
	_, err = io.WriteString(connection, first)
	check(err)
	return connection.(*net.TCPConn)
}

func send() {
	connection := connect("b")
	defer connection.Close()
	block := make([]byte, blockSize)
	for !stopping.Load() {
		size, err := connection.Write(block)
		check(err)
		total.Add(int64(size))
	}
}

func ask() {
	connection := connect("r")
	defer connection.Close()
	request, response := make([]byte, requestSize), make([]byte, responseSize)
	mine := make([]time.Duration, 0, 1<<14)
	for !stopping.Load() {
		began := time.Now()
		_, err := connection.Write(request)
		check(err)
		_, err = io.ReadFull(connection, response)
		check(err)
		if warm.Load() {
			mine = append(mine, time.Since(began))
		}
		total.Add(1)
	}
	lock.Lock()
	latencies = append(latencies, mine...)
	lock.Unlock()
}

func connectAndAsk() {
	request := "c" + string(make([]byte, requestSize))
	for !stopping.Load() {
		connection := connect(request)
		response, err := io.ReadAll(connection)
		check(err)
		if len(response) != responseSize {
			log.Fatalf("%d bytes of an answer", len(response))
		}
		connection.Close()
		total.Add(1)
	}
}

// A blocking descriptor: Go's own way to wait would be part of each figure.
func blocking(connection interface{ File() (*os.File, error) }) int {
	file, err := connection.File()
	check(err)
	held = append(held, file)
	descriptor := int(file.Fd())
	check(syscall.SetNonblock(descriptor, false))
	return descriptor
}

func askSlowly() {
	runtime.LockOSThread()
	var sockets []int
	for len(sockets) < *parallel {
		sockets = append(sockets, blocking(connect("e")))
	}
	answer := make([]byte, requestSize)
	for _, socket := range sockets { // each gives back its first byte
		_, err := syscall.Read(socket, answer)
		check(err)
	}
	request := make([]byte, requestSize)
	for turn := 0; !stopping.Load(); turn++ {
		socket := sockets[turn%len(sockets)]
		began := time.Now()
		_, err := syscall.Write(socket, request)
		check(err)
		for left := requestSize; left > 0; {
			size, err := syscall.Read(socket, answer)
			check(err)
			if size == 0 {
				log.Fatal("a connection ended")
			}
			left -= size
		}
		if warm.Load() {
			latencies = append(latencies, time.Since(began))
		}
		total.Add(1)
		moment := syscall.NsecToTimespec(pause.Nanoseconds())
		syscall.Nanosleep(&moment, nil)
	}
}

func ping() {
	runtime.LockOSThread()
	connection, err := net.Dial("udp", next())
	check(err)
	socket := blocking(connection.(*net.UDPConn))
	timeout := syscall.NsecToTimeval(lost.Nanoseconds())
	check(syscall.SetsockoptTimeval(socket, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &timeout))
	datagram := make([]byte, datagramSize)
	for underway := 0; !stopping.Load(); {
		for ; underway < *parallel; underway++ {
			_, err := syscall.Write(socket, datagram)
			check(err)
		}
		if _, err := syscall.Read(socket, datagram); err == syscall.EAGAIN {
			underway = 0
			continue
		} else if err != nil && err != syscall.EINTR {
			log.Fatal(err)
		}
		underway--
		total.Add(1)
	}
}

func idle() {
	word := make([]byte, 1)
	for left := *parallel; left > 0; left-- {
		connection := connect("e")
		held = append(held, connection)
		_, err := io.ReadFull(connection, word)
		check(err)
	}
	fmt.Println("idle")
	time.Sleep(24 * time.Hour)
}

// The target.

func serve() {
	listener, err := net.Listen("tcp", *listen)
	check(err)
	for {
		connection, err := listener.Accept()
		check(err)
		go answer(connection)
	}
}

func answer(connection net.Conn) {
	defer connection.Close()
	first := make([]byte, 1)
	if _, err := io.ReadFull(connection, first); err != nil {
		return
	}
	switch first[0] {
	case 'b':
		block := make([]byte, blockSize)
		for err := error(nil); err == nil; {
			_, err = connection.Read(block)
		}
	case 'e':
		connection.Write(first)
		echo(connection)
	case 'r', 'c':
		request, response := make([]byte, requestSize), make([]byte, responseSize)
		for {
			if _, err := io.ReadFull(connection, request); err != nil {
				return
			}
			if _, err := connection.Write(response); err != nil || first[0] == 'c' {
				return
			}
		}
	}
}

func echo(connection net.Conn) {
	block := make([]byte, 4096) // small: thousands of them are held
	for {
		size, err := connection.Read(block)
		if err != nil {
			return
		}
		if _, err := connection.Write(block[:size]); err != nil {
			return
		}
	}
}

func echoDatagrams() {
	connection, err := net.ListenPacket("udp", *listen)
	check(err)
	datagram := make([]byte, 65536)
	for {
		size, from, err := connection.(*net.UDPConn).ReadFromUDPAddrPort(datagram)
		check(err)
		connection.(*net.UDPConn).WriteToUDPAddrPort(datagram[:size], from)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
