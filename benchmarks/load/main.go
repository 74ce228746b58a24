// The load: visitors on one side of what is measured, and their target on the other.
//
//	load -kind bulk|requests|connections -visit HOST:PORT -target HOST:PORT -parallel N -for DURATION
//
// bulk: each visitor is sent bytes as fast as they come. requests: each visitor asks again and again
// on the connection it has. connections: each visitor connects anew for every request, and the target
// closes. One line of JSON tells how much was done, in how many seconds.
package main

import (
	"encoding/json"
	"flag"
	"io"
	"log"
	"net"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

const (
	requestSize  = 100
	responseSize = 300
	blockSize    = 256 * 1024
	// Every connection is made, and buffers have grown, before anything is counted.
	warmUp = 300 * time.Millisecond
)

var (
	kind     = flag.String("kind", "", "bulk, requests or connections")
	visit    = flag.String("visit", "", "where visitors connect")
	target   = flag.String("target", "", "where the target listens")
	parallel = flag.Int("parallel", 1, "visitors at a time")
	lasting  = flag.Duration("for", time.Second, "how long to measure")

	total    atomic.Int64 // bytes or requests
	warm     atomic.Bool
	stopping atomic.Bool
)

func main() {
	flag.Parse()
	listener, err := net.Listen("tcp", *target)
	if err != nil {
		log.Fatal(err)
	}
	go serve(listener)

	latencies := make([][]time.Duration, *parallel)
	var visitors sync.WaitGroup
	for number := 0; number < *parallel; number++ {
		visitors.Add(1)
		go func(number int) {
			defer visitors.Done()
			switch *kind {
			case "bulk":
				fetch()
			case "requests":
				latencies[number] = ask()
			case "connections":
				for !stopping.Load() {
					connectAndAsk()
				}
			default:
				log.Fatalf("unknown kind %q", *kind)
			}
		}(number)
	}
	time.Sleep(warmUp)
	warm.Store(true)
	before, began := total.Load(), time.Now()
	time.Sleep(*lasting)
	counted, took := total.Load()-before, time.Since(began)
	stopping.Store(true)
	visitors.Wait()
	report(counted, took, latencies)
}

func report(counted int64, took time.Duration, latencies [][]time.Duration) {
	var all []time.Duration
	for _, some := range latencies {
		all = append(all, some...)
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	result := map[string]any{
		"counted": counted,
		"seconds": took.Seconds(),
		"total":   total.Load(), // with what came before and after, as CPU time is taken of all
	}
	if len(all) > 0 {
		result["p50"] = all[len(all)/2].Seconds()
		result["p99"] = all[len(all)*99/100].Seconds()
	}
	json.NewEncoder(os.Stdout).Encode(result)
}

// The visitors.

func connect() net.Conn {
	connection, err := net.Dial("tcp", *visit)
	if err != nil {
		log.Fatal(err)
	}
	return connection
}

func fetch() {
	connection := connect()
	defer connection.Close()
	buffer := make([]byte, blockSize)
	for !stopping.Load() {
		size, err := connection.Read(buffer)
		if err != nil {
			log.Fatal(err)
		}
		total.Add(int64(size))
	}
}

func ask() []time.Duration {
	connection := connect()
	defer connection.Close()
	request, response := make([]byte, requestSize), make([]byte, responseSize)
	latencies := make([]time.Duration, 0, 1<<14)
	for !stopping.Load() {
		began := time.Now()
		if _, err := connection.Write(request); err != nil {
			log.Fatal(err)
		}
		if _, err := io.ReadFull(connection, response); err != nil {
			log.Fatal(err)
		}
		if warm.Load() {
			latencies = append(latencies, time.Since(began))
		}
		total.Add(1)
	}
	return latencies
}

func connectAndAsk() {
	connection := connect()
	defer connection.Close()
	if _, err := connection.Write(make([]byte, requestSize)); err != nil {
		log.Fatal(err)
	}
	if response, err := io.ReadAll(connection); err != nil || len(response) != responseSize {
		log.Fatalf("%d bytes of an answer: %v", len(response), err)
	}
	total.Add(1)
}

// The target.

func serve(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		if *kind == "bulk" {
			go send(connection)
		} else {
			go answer(connection)
		}
	}
}

func send(connection net.Conn) {
	defer connection.Close()
	block := make([]byte, blockSize)
	for {
		if _, err := connection.Write(block); err != nil {
			return
		}
	}
}

func answer(connection net.Conn) {
	defer connection.Close()
	request, response := make([]byte, requestSize), make([]byte, responseSize)
	for {
		if _, err := io.ReadFull(connection, request); err != nil {
			return
		}
		if _, err := connection.Write(response); err != nil || *kind == "connections" {
			return
		}
	}
}
