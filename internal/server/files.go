package server

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/moduleexec"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// filesService is the service Files.
type filesService struct {
	muxv1.UnimplementedFilesServer
	*Server
}

// Transfer serves a request that only moves files.
func (s *filesService) Transfer(stream runStream) error {
	return s.serve(stream, func(st step) error {
		if st.put == nil && st.get == nil && st.folder == nil {
			return invalid("a transfer has only Put, Get and Folder steps")
		}
		return nil
	})
}

// Offer makes a payload known.
func (s *filesService) Offer(ctx context.Context, in *muxv1.OfferRequest) (*muxv1.OfferReply, error) {
	manifest, err := toManifest(in.GetManifest())
	if err != nil {
		return nil, statusOf(ctx, "", err)
	}
	missing, err := s.o.Payloads.Offer(in.GetPayload(), manifest, toInputs(in.GetInputs()))
	if err != nil {
		return nil, statusOf(ctx, "", invalid("%s", err))
	}
	reply := &muxv1.OfferReply{}
	for _, d := range missing {
		reply.Missing = append(reply.Missing, d[:])
	}
	return reply, nil
}

func toManifest(m *muxv1.Manifest) (moduleexec.Manifest, error) {
	out := moduleexec.Manifest{
		Module:   m.GetModule(),
		Loader:   m.GetLoader(),
		Profile:  m.GetProfile(),
		Preload:  m.GetPreload(),
		RealPath: m.GetRealPath(),
	}
	for _, e := range m.GetEntries() {
		digest, err := toDigest(e.GetSha256())
		if err != nil {
			return out, err
		}
		out.Entries = append(out.Entries, moduleexec.Entry{Path: e.GetPath(), Digest: digest, Size: e.GetSize()})
	}
	return out, nil
}

func toDigest(b []byte) (blobcache.Digest, error) {
	if len(b) != len(blobcache.Digest{}) {
		return blobcache.Digest{}, invalid("a SHA-256 of %d bytes", len(b))
	}
	return blobcache.Digest(b), nil
}

func toInputs(in []*muxv1.OfferRequest_Input) []moduleexec.Input {
	out := make([]moduleexec.Input, 0, len(in))
	for _, i := range in {
		out = append(out, moduleexec.Input{
			Path:      i.GetPath(),
			Dev:       i.GetDev(),
			Ino:       i.GetIno(),
			Size:      i.GetSize(),
			MtimeNs:   i.GetMtimeNs(),
			CtimeNs:   i.GetCtimeNs(),
			Directory: i.GetDirectory(),
			Absent:    i.GetAbsent(),
		})
	}
	return out
}

// Upload takes blobs, one after the other, each in parts.
func (s *filesService) Upload(stream grpc.ClientStreamingServer[muxv1.Blob, muxv1.UploadReply]) error {
	var name blobcache.Digest
	var content []byte
	open := false
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) && !open {
			return stream.SendAndClose(&muxv1.UploadReply{})
		}
		if errors.Is(err, io.EOF) {
			err = invalid("the content of blob %s ends early", name)
		}
		if err != nil {
			return statusOf(stream.Context(), "", err)
		}
		digest, err := toDigest(part.GetSha256())
		switch {
		case err != nil:
		case open && digest != name:
			err = invalid("blob %s begins before blob %s is complete", digest, name)
		case len(part.GetData()) > maxBodyPart:
			err = invalid("%d bytes of a blob in one message: at most %d are allowed", len(part.GetData()), maxBodyPart)
		case len(content)+len(part.GetData()) > moduleexec.MaxBlobSize:
			err = &fault.Error{Kind: fault.TooLarge, Message: "a blob is too large"}
		}
		if err != nil {
			return statusOf(stream.Context(), "", err)
		}
		name, open = digest, true
		content = append(content, part.GetData()...)
		if !part.GetLast() {
			continue
		}
		if err := s.o.Payloads.AddBlob(name, content); err != nil {
			return statusOf(stream.Context(), "", invalid("%s", err))
		}
		content, open = nil, false
	}
}
