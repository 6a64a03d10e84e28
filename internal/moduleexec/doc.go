// Package moduleexec runs modules and commands on a node: it remembers Ansible's payloads, brings their files to the agent, starts
// jobs, carries their input and output in bounded parts and evaluates guards.
//
// It must not know how a node was reached, what gRPC is, or what is in a module.
package moduleexec
