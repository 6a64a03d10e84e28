// Package server is the daemon's gRPC face: the services of proto/mitogen_mux/v1, one file each. It turns messages into the values that
// the rooms below know (keys included), joins a context of the tree with moduleexec or fileservice for each step, and turns errors into
// statuses with their detail. It knows which runs there are and ends them with their processes.
//
// No message of the .proto files goes further down, and nothing here knows SSH, become tools or the agent's wire.
package server
