// Package fileservice moves files between the controller and a node: whole or not at all, checked, in bounded memory.
//
// A file of at most 32 KiB is one message, and passes whatever else is under way. A larger one goes in chunks of 128 KiB, as fast as
// the stream's credit allows, and waits for its turn: one large file at a time in each direction of a link, first come, first served,
// so that an interrupted run leaves whole files. Where a node has no agent the same is done with cat, see plain.go.
//
// It must not know how a node was reached, what gRPC is, or what Ansible wants with the file.
package fileservice
