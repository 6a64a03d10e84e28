package sshlink

import (
	"fmt"
	"slices"
	"strings"
)

// treatment is what becomes of an option of ssh_config.
type treatment uint8

const (
	done     treatment = iota + 1 // the built-in client does it, or ssh -G has applied it already
	moot                          // it changes nothing for a command that is executed without a person
	fallback                      // some of its values need the user's own ssh
)

// treatments are the options that `ssh -G` of any release prints. docs/reference/ssh.md says the same for people.
var treatments = map[string]treatment{}

func init() {
	for t, names := range map[treatment]string{
		done: `addressfamily batchmode bindaddress canonicaldomains canonicalizefallbacklocal canonicalizehostname canonicalizemaxdots
			canonicalizepermittedcnames casignaturealgorithms certificatefile challengeresponseauthentication ciphers connectionattempts connecttimeout
			forwardagent globalknownhostsfile hashknownhosts host hostkeyalgorithms hostkeyalias hostname identitiesonly
			identityagent identityfile kbdinteractiveauthentication kexalgorithms macs nohostauthenticationforlocalhost
			passwordauthentication port preferredauthentications proxycommand proxyjump pubkeyacceptedalgorithms pubkeyacceptedkeytypes
			pubkeyauthentication rekeylimit requiredrsasize sendenv serveralivecountmax serveraliveinterval setenv stricthostkeychecking
			tcpkeepalive user userknownhostsfile`,
		moot: `addkeystoagent channeltimeout checkhostip clearallforwardings compression
			compressionlevel controlmaster controlpersist enableescapecommandline enablesshkeysign escapechar exitonforwardfailure
			fingerprinthash forkafterauthentication forwardx11 forwardx11timeout forwardx11trusted gatewayports
			gssapidelegatecredentials gssapikexalgorithms gssapirenewalforcesrekey gssapitrustdns hostbasedacceptedalgorithms
			hostbasedkeytypes ignoreunknown ipqos kbdinteractivedevices loglevel logverbose numberofpasswordprompts
			obscurekeystroketiming permitremoteopen protocol refuseconnection requesttty rhostsrsaauthentication
			rsaauthentication securitykeyprovider sessiontype stdinnull streamlocalbindmask streamlocalbindunlink syslogfacility tag
			tunneldevice updatehostkeys useprivilegedport versionaddendum visualhostkey warnweakcrypto xauthlocation`,
		fallback: `bindinterface controlpath dynamicforward gssapiauthentication gssapikeyexchange hostbasedauthentication
			knownhostscommand localcommand localforward permitlocalcommand pkcs11provider proxyusefdpass remotecommand
			remoteforward revokedhostkeys tunnel verifyhostkeydns`,
	} {
		for name := range strings.FieldsSeq(names) {
			treatments[name] = t
		}
	}
}

// foreign says which of the options that c was read from the built-in client cannot do; empty if there is none. What may turn out
// not to matter (GSSAPI and host-based authentication when a key is accepted) is not among them.
func (c *config) foreign() string {
	if len(c.elsewhere) == 0 {
		return ""
	}
	return strings.Join(c.elsewhere, ", ")
}

// noteForeign keeps an option that only the user's ssh can do.
func (c *config) noteForeign(name, value string) {
	needed := false
	switch name {
	case "bindinterface", "dynamicforward", "knownhostscommand", "localforward", "pkcs11provider", "remotecommand", "remoteforward":
		needed = notNone(value) != ""
	case "proxyusefdpass", "verifyhostkeydns":
		needed = yes(value)
	case "tunnel":
		needed = !slices.Contains([]string{"no", "false"}, value)
	case "localcommand":
		c.localCommand = notNone(value)
	case "permitlocalcommand":
		c.permitLocal = yes(value)
	}
	if needed {
		c.elsewhere = append(c.elsewhere, spelled[name])
	}
}

// settleForeign is noteForeign for options that need each other, once all are known.
func (c *config) settleForeign() {
	if c.permitLocal && c.localCommand != "" {
		c.elsewhere = append(c.elsewhere, "LocalCommand")
	}
	slices.Sort(c.elsewhere)
	c.elsewhere = slices.Compact(c.elsewhere)
}

// spelled is how people know an option.
var spelled = map[string]string{
	"bindinterface": "BindInterface", "dynamicforward": "DynamicForward", "knownhostscommand": "KnownHostsCommand",
	"localforward": "LocalForward", "pkcs11provider": "PKCS11Provider", "proxyusefdpass": "ProxyUseFdpass",
	"remotecommand": "RemoteCommand", "remoteforward": "RemoteForward", "tunnel": "Tunnel", "verifyhostkeydns": "VerifyHostKeyDNS",
}

// leftOut says what the user's ssh could still try where the built-in client was refused; empty if nothing.
func (a *authenticator) leftOut() string {
	var names []string
	if a.cfg.GSSAPIAuth && slices.Contains(a.allowed, "gssapi-with-mic") {
		names = append(names, "GSSAPI")
	}
	if a.cfg.HostbasedAuth && slices.Contains(a.allowed, "hostbased") {
		names = append(names, "host-based authentication")
	}
	if slices.Contains(a.allowed, "publickey") {
		for _, path := range a.ring.hardware {
			names = append(names, fmt.Sprintf("the security key of %s", path))
		}
	}
	return strings.Join(names, ", ")
}
