package server

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// keyMaker makes the keys of hops: an HMAC over the fields that the .proto marks as identity. Its secret is this process's own, so that
// a key tells nothing of the passwords that went into it.
type keyMaker struct {
	secret   [sha256.Size]byte
	identity map[protoreflect.FullName][]protoreflect.FieldDescriptor // in the order of their numbers
}

func newKeyMaker() *keyMaker {
	k := &keyMaker{identity: map[protoreflect.FullName][]protoreflect.FieldDescriptor{}}
	_, _ = rand.Read(k.secret[:]) // cannot fail
	k.learn((&muxv1.Hop{}).ProtoReflect().Descriptor())
	return k
}

// learn notes the identity fields of a message and of those in it.
func (k *keyMaker) learn(message protoreflect.MessageDescriptor) {
	if _, known := k.identity[message.FullName()]; known {
		return
	}
	marked := []protoreflect.FieldDescriptor{}
	fields := message.Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if yes, ok := proto.GetExtension(field.Options(), muxv1.E_Identity).(bool); ok && yes {
			marked = append(marked, field)
		}
	}
	k.identity[message.FullName()] = marked
	for _, field := range marked {
		if field.Message() != nil {
			k.learn(field.Message())
		}
	}
}

// account is the key of a hop without its interpreter. Local hops of two runs differ, for each belongs to its run.
func (k *keyMaker) account(h *muxv1.Hop, run string) hop.Key {
	without := &muxv1.Hop{Method: h.GetMethod()}
	mac := hmac.New(sha256.New, k.secret[:])
	k.encode(mac, without.ProtoReflect())
	if h.GetLocal() != nil {
		writeBytes(mac, []byte(run))
	}
	return hop.Key(mac.Sum(nil))
}

// ticket is what names the end of a path to processes of a run.
func (k *keyMaker) ticket(run, host string, path hop.Path, shell [][]byte) string {
	mac := hmac.New(sha256.New, k.secret[:])
	writeBytes(mac, []byte("ticket"))
	writeBytes(mac, []byte(run))
	writeBytes(mac, []byte(host))
	for _, h := range path {
		writeBytes(mac, h.Account[:])
	}
	writeNumber(mac, uint64(len(shell)))
	for _, word := range shell {
		writeBytes(mac, word)
	}
	return run + "." + hex.EncodeToString(mac.Sum(nil)[:16])
}

// encode writes a message's identity so that two messages give the same bytes only if it is the same: each field that is set with its
// number, everything with its length.
func (k *keyMaker) encode(to hash.Hash, message protoreflect.Message) {
	for _, field := range k.identity[message.Descriptor().FullName()] {
		if !message.Has(field) {
			continue
		}
		writeNumber(to, uint64(field.Number()))
		value := message.Get(field)
		if !field.IsList() {
			k.encodeValue(to, field, value)
			continue
		}
		list := value.List()
		writeNumber(to, uint64(list.Len()))
		for i := range list.Len() {
			k.encodeValue(to, field, list.Get(i))
		}
	}
	writeNumber(to, 0) // no field has this number: the message's end
}

func (k *keyMaker) encodeValue(to hash.Hash, field protoreflect.FieldDescriptor, value protoreflect.Value) {
	switch field.Kind() { //nolint:exhaustive // what else may come is in default
	case protoreflect.MessageKind:
		k.encode(to, value.Message())
	case protoreflect.BytesKind:
		writeBytes(to, value.Bytes())
	default: // strings, numbers, bools and enums print unambiguously
		writeBytes(to, []byte(value.String()))
	}
}

func writeNumber(to hash.Hash, n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	to.Write(b[:])
}

func writeBytes(to hash.Hash, b []byte) {
	writeNumber(to, uint64(len(b)))
	to.Write(b)
}
