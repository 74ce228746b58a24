// The yardstick: a relay as a Go program would have it, one goroutine per direction.
//
//	yardstick -listen HOST:PORT -to HOST:PORT [-splice] [-tls listen|dial]
//
// TCP is copied through 32 KB buffers; with -splice that is left to io.Copy, which on Linux splices in
// the kernel. UDP is relayed datagram by datagram, through a socket per visitor. With -tls one side of
// TCP is TLS 1.3, the one listened on, under a certificate made at start, or the one dialed, where any
// is taken; UDP is not relayed then.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"io"
	"log"
	"math/big"
	"net"
	"net/netip"
	"time"
)

const bufferSize = 32 * 1024

var (
	listen = flag.String("listen", "", "address to listen on")
	to     = flag.String("to", "", "address to relay to")
	splice = flag.Bool("splice", false, "relay by splice where the system has it")
	secure = flag.String("tls", "", "the side that is TLS: listen or dial")
)

// What TCP and TLS connections have in common.
type conn interface {
	net.Conn
	CloseWrite() error
}

func main() {
	flag.Parse()
	listener, err := net.Listen("tcp", *listen)
	check(err)
	if *secure == "listen" {
		listener = tls.NewListener(listener, &tls.Config{
			MinVersion:   tls.VersionTLS13,
			Certificates: []tls.Certificate{certificate()},
		})
	}
	if *secure == "" {
		go relayDatagrams()
	}
	for {
		visitor, err := listener.Accept()
		check(err)
		go relay(visitor.(conn))
	}
}

func relay(visitor conn) {
	defer visitor.Close()
	target, err := dial()
	if err != nil {
		return
	}
	defer target.Close()
	done := make(chan struct{})
	go func() {
		move(target, visitor)
		close(done)
	}()
	move(visitor, target)
	<-done
}

func dial() (conn, error) {
	if *secure == "dial" {
		return tls.Dial("tcp", *to, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
	}
	connection, err := net.Dial("tcp", *to)
	if err != nil {
		return nil, err
	}
	return connection.(*net.TCPConn), nil
}

// move passes on what one side says, and then that it has said all.
func move(to, from conn) {
	if *splice {
		io.Copy(to, from)
	} else {
		// Bare interfaces hide the methods by which the two sockets would be spliced.
		io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, bufferSize))
	}
	to.CloseWrite()
}

func relayDatagrams() {
	address, err := net.ResolveUDPAddr("udp", *listen)
	check(err)
	socket, err := net.ListenUDP("udp", address)
	check(err)
	flows := map[netip.AddrPort]net.Conn{}
	datagram := make([]byte, 65536)
	for {
		size, visitor, err := socket.ReadFromUDPAddrPort(datagram)
		check(err)
		flow := flows[visitor]
		if flow == nil {
			flow, err = net.Dial("udp", *to)
			check(err)
			flows[visitor] = flow
			go func() {
				answer := make([]byte, 65536)
				for {
					// A target that is not there is told as an error once; it may come.
					if size, err := flow.Read(answer); err == nil {
						socket.WriteToUDPAddrPort(answer[:size], visitor)
					}
				}
			}()
		}
		flow.Write(datagram[:size])
	}
}

func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	made, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(err)
	return tls.Certificate{Certificate: [][]byte{made}, PrivateKey: key}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
