# Decree: `make help` lists what there is.
SHELL := /bin/bash
BIN := $(CURDIR)/bin
# Pinned tools; each is built from source into ./bin on first use.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
BUF := github.com/bufbuild/buf/cmd/buf@v1.75.0
GEN_GO := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GEN_GRPC := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
