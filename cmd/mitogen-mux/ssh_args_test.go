package main

import (
	"strings"
	"testing"
)

func TestParseSSH(t *testing.T) {
	for name, c := range map[string]struct {
		line string // words; _ is a space in one of them
		want sshCall
		says string
	}{
		"rsync": {
			"--ticket=t --socket=/s -l deploy web1 rsync --server -vlogDtprze.iLsfxC . /srv", sshCall{ticket: "t", socket: "/s", host: "web1", command: "rsync --server -vlogDtprze.iLsfxC . /srv"}, "",
		},
		"scp": {
			"--ticket t -x -oPermitLocalCommand=no -oClearAllForwardings=yes -oRequestTTY=no -l me -s -- web1 sftp",
			sshCall{ticket: "t", host: "web1", command: sftpServer, subsystem: true},
			"",
		},
		"scp -O":                {"-x -oForwardAgent=no -- me@web1 scp -t /srv", sshCall{host: "web1", command: "scp -t /srv"}, ""},
		"git":                   {"-o SendEnv=GITPROTOCOL -p 2222 git@web1 git-upload-pack_'/srv/repo.git'", sshCall{host: "web1", command: "git-upload-pack '/srv/repo.git'"}, ""},
		"options in one word":   {"-nTvvp22 web1 true", sshCall{host: "web1", command: "true", noInput: true}, ""},
		"value in the next":     {"-qi key -F none -S none web1 true", sshCall{host: "web1", command: "true"}, ""},
		"behind the host":       {"web1 -n -l me true -n", sshCall{host: "web1", command: "true -n", noInput: true}, ""},
		"a host like an option": {"-n -- -web1 true", sshCall{host: "-web1", command: "true", noInput: true}, ""},
		"a dash":                {"web1 - x", sshCall{host: "web1", command: "- x"}, ""},
		"words of the command":  {"web1 a__b -- c", sshCall{host: "web1", command: "a  b -- c"}, ""},
		"nothing":               {"", sshCall{}, "no host"},
		"only options":          {"-v -l me", sshCall{}, "no host"},
		"no command":            {"-t web1", sshCall{}, "no command"},
		"a forward":             {"-N -L 1:h:1 web1", sshCall{}, "-N is not served"},
		"the configuration":     {"-G web1", sshCall{}, "-G is not served"},
		"another subsystem":     {"-s web1 netconf", sshCall{}, "no subsystem netconf"},
		"not of ssh":            {"-nz web1 true", sshCall{}, "no option -z"},
		"a long one":            {"-l me --ticket=t web1 true", sshCall{}, "no option --"},
		"no value":              {"web1 -l", sshCall{}, "-l needs a value"},
		"no ticket":             {"--ticket", sshCall{}, "--ticket needs a value"},
	} {
		t.Run(name, func(t *testing.T) {
			words := strings.Fields(c.line)
			for i := range words {
				words[i] = strings.ReplaceAll(words[i], "_", " ")
			}
			got, err := parseSSH(words)
			switch {
			case c.says != "":
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %+v, %v", got, err)
				}
			case err != nil || got != c.want:
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}
