package server

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// full is a message with every field set, of a oneof the one that is named.
func full(message protoreflect.Message, method protoreflect.Name) protoreflect.Message {
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.ContainingOneof() != nil && field.Name() != method {
			continue
		}
		set(message, field, 1)
	}
	return message
}

// set gives a field a value that depends on n.
func set(message protoreflect.Message, field protoreflect.FieldDescriptor, n int) {
	if field.IsList() {
		list := message.NewField(field).List()
		list.Append(scalar(field, n))
		list.Append(scalar(field, n))
		message.Set(field, protoreflect.ValueOfList(list))
		return
	}
	if field.Message() != nil {
		message.Set(field, protoreflect.ValueOfMessage(full(message.NewField(field).Message(), "")))
		if value := field.Message().Fields().ByName("value"); value != nil {
			set(message.Mutable(field).Message(), value, n)
		}
		return
	}
	message.Set(field, scalar(field, n))
}

func scalar(field protoreflect.FieldDescriptor, n int) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprint("text ", n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(fmt.Appendf(nil, "bytes %d", n))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n%2 == 1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	default:
		panic("a field of kind " + field.Kind().String() + ": teach this test about it")
	}
}

// Every field of every hop message: a change of one that is marked as identity changes the key, a change of another does not.
func TestKeyIsMadeOfIdentity(t *testing.T) {
	k := newKeyMaker()
	seen := 0
	for _, method := range []protoreflect.Name{"ssh", "local", "become"} {
		base := full((&muxv1.Hop{}).ProtoReflect(), method)
		baseHop, ok := base.Interface().(*muxv1.Hop)
		if !ok {
			t.Fatal("no hop")
		}
		key := k.account(baseHop, "run")
		methodField := base.Descriptor().Fields().ByName(method)
		fields := methodField.Message().Fields()
		for i := range fields.Len() {
			field := fields.Get(i)
			identity, _ := proto.GetExtension(field.Options(), muxv1.E_Identity).(bool)
			for what, change := range map[string]func(protoreflect.Message){
				"changed": func(m protoreflect.Message) { set(m, field, 2) },
				"cleared": func(m protoreflect.Message) { m.Clear(field) },
			} {
				changed, ok := proto.Clone(baseHop).(*muxv1.Hop)
				if !ok {
					t.Fatal("no hop")
				}
				change(changed.ProtoReflect().Mutable(methodField).Message())
				if differs := k.account(changed, "run") != key; differs != identity {
					t.Errorf("%s %s: marked as identity: %v, key differs: %v", field.FullName(), what, identity, differs)
				}
				seen++
			}
		}
	}
	if seen < 40 {
		t.Errorf("only %d changes were tried", seen)
	}
}

func TestKeys(t *testing.T) {
	k := newKeyMaker()
	ssh := func(args ...string) *muxv1.Hop {
		return &muxv1.Hop{Method: &muxv1.Hop_Ssh{Ssh: &muxv1.SshHop{Host: "h", Args: args}}}
	}
	local := &muxv1.Hop{Method: &muxv1.Hop_Local{Local: &muxv1.LocalHop{}}}
	python := ssh("a")
	python.Interpreter = "/usr/bin/python3"
	keys := map[hop.Key]string{}
	for name, key := range map[string]hop.Key{
		"args a":     k.account(ssh("a"), "r"),
		"args a, b":  k.account(ssh("a", "b"), "r"),
		"args ab":    k.account(ssh("ab"), "r"),
		"args none":  k.account(ssh(), "r"),
		"args empty": k.account(ssh(""), "r"),
		"local":      k.account(local, "r"),
		"local, s":   k.account(local, "s"),
		"no method":  k.account(&muxv1.Hop{}, "r"),
		"other key":  newKeyMaker().account(ssh("a"), "r"),
	} {
		if other, taken := keys[key]; taken {
			t.Errorf("%s and %s have the same key", name, other)
		}
		keys[key] = name
	}
	if k.account(ssh("a"), "r") != k.account(ssh("a"), "s") {
		t.Error("a connection is not shared between runs")
	}
	if k.account(python, "r") != k.account(ssh("a"), "r") {
		t.Error("the interpreter is in the account's key")
	}
}
