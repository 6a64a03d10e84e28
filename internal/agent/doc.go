// Package agent is the daemon's end of a link to an agent, and the agent itself as the bytes to send. docs/agent-protocol.md is what
// both ends keep to. It believes nothing of what the far side sends beyond that page, and a far side that breaks it loses its own
// link only.
//
// It must not know how a link came to be (SSH, become, a socket), what a module is to Ansible, or that there are other links.
package agent
