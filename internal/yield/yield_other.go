//go:build !linux

package yield

func processor() {}
