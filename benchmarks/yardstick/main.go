// The yardstick: a TCP relay as a Go program would have it, one goroutine per direction.
//
//	yardstick -to HOST:PORT [-splice]
//
// It listens on a free port of 127.0.0.1 and prints its address. By default it copies through 32 KB
// buffers; with -splice it leaves the choice to io.Copy, which on Linux splices in the kernel.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net"
)

const bufferSize = 32 * 1024

func main() {
	to := flag.String("to", "", "address to relay to")
	splice := flag.Bool("splice", false, "relay by splice where the system has it")
	flag.Parse()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	for {
		visitor, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go relay(visitor.(*net.TCPConn), *to, *splice)
	}
}

func relay(visitor *net.TCPConn, to string, splice bool) {
	defer visitor.Close()
	connection, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	target := connection.(*net.TCPConn)
	defer target.Close()
	done := make(chan struct{})
	go func() {
		move(target, visitor, splice)
		close(done)
	}()
	move(visitor, target, splice)
	<-done
}

// move passes on what one side says, and then that it has said all.
func move(to, from *net.TCPConn, splice bool) {
	if splice {
		io.Copy(to, from)
	} else {
		// Bare interfaces hide the methods by which the two sockets would be spliced.
		io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, bufferSize))
	}
	to.CloseWrite()
}
