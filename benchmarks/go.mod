module nodepass/benchmarks

go 1.21
