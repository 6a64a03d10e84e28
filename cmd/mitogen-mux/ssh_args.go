package main

import (
	"errors"
	"fmt"
	"strings"
)

// sshCall is what a program that thinks it calls ssh wants.
type sshCall struct {
	ticket, socket string // --ticket and --socket, which come before ssh's own options
	host           string // without the account: that is the ticket's
	command        string
	noInput        bool // -n
	subsystem      bool // -s
}

// The options of ssh, as OpenSSH 10 has them. What says how to connect says nothing here: the ticket knows.
const (
	mootOptions  = "1246aACgkKMqtTvXxYy"
	wordOptions  = "BbcDeEFIiJLlmoPpRS" // moot too, with a value
	otherOptions = "fGNOQVWw"           // these want something else than a command
)

// sftpServer runs the program that a server's subsystem sftp is, wherever the system has it.
const sftpServer = `for f in /usr/lib/openssh /usr/libexec/openssh /usr/libexec /usr/lib/ssh /usr/lib /usr/local/libexec
do [ -x $f/sftp-server ] && exec $f/sftp-server; done; echo 'there is no sftp-server' >&2; exit 127`

// parseSSH takes ssh's command line apart as ssh does: options stand before the host and behind it, the rest is the command.
func parseSSH(args []string) (c sshCall, err error) {
	if args, err = c.takeOwn(args); err != nil {
		return c, err
	}
	for options := true; len(args) > 0; {
		word := args[0]
		switch {
		case options && word == "--":
			options, args = false, args[1:]
		case options && len(word) > 1 && word[0] == '-':
			if args, err = c.takeOptions(word[1:], args[1:]); err != nil {
				return c, err
			}
		case c.host == "":
			c.host, args = word[strings.LastIndexByte(word, '@')+1:], args[1:]
		default:
			c.command, args = strings.Join(args, " "), nil
		}
	}
	switch {
	case c.host == "":
		return c, errors.New("no host")
	case c.command == "":
		return c, errors.New("no command: there is no shell to log in to")
	case c.subsystem && c.command != "sftp":
		return c, fmt.Errorf("there is no subsystem %s", c.command)
	case c.subsystem:
		c.command = sftpServer
	}
	return c, nil
}

// takeOwn takes the options that ssh does not have, and returns the words behind them.
func (c *sshCall) takeOwn(args []string) ([]string, error) {
	own := map[string]*string{"--ticket": &c.ticket, "--socket": &c.socket}
	for len(args) > 0 {
		name, value, joined := strings.Cut(args[0], "=")
		to, known := own[name]
		switch {
		case !known:
			return args, nil
		case joined:
			*to, args = value, args[1:]
		case len(args) == 1:
			return nil, fmt.Errorf("%s needs a value", name)
		default:
			*to, args = args[1], args[2:]
		}
	}
	return nil, nil
}

// takeOptions takes the options of one word, which have the value of the last of them behind them, in that word or the next. It returns the
// words behind that.
func (c *sshCall) takeOptions(letters string, args []string) ([]string, error) {
	for i, letter := range letters {
		switch {
		case letter == 'n':
			c.noInput = true
		case letter == 's':
			c.subsystem = true
		case strings.ContainsRune(mootOptions, letter):
		case strings.ContainsRune(wordOptions, letter):
			if i+1 < len(letters) {
				return args, nil
			}
			if len(args) == 0 {
				return nil, fmt.Errorf("-%c needs a value", letter)
			}
			return args[1:], nil
		case strings.ContainsRune(otherOptions, letter):
			return nil, fmt.Errorf("-%c is not served: this stands in for ssh where it runs commands", letter)
		default:
			return nil, fmt.Errorf("ssh has no option -%c", letter)
		}
	}
	return args, nil
}
