# Stage 1: the argument of `python -c`, followed by the agent's name as sys.argv[1]. docs/agent-protocol.md, "Bootstrap".
# internal/agent/embed.go leaves out comments and empty lines and makes the rest one line without a line feed. That stands between
# single quotes in a command line of unknown shells and become tools: no single quote, ! $ backtick or backslash may occur in it, and
# no three double quotes. The magic is spelt so that a shell which echoes this text does not say it.
import os,sys,zlib
if os.isatty(0):
 import tty
 tty.setraw(0)
def get(n):
 b=b""
 while len(b)<n:
  c=os.read(0,n-len(b))
  if not c:os._exit(1)
  b+=c
 return b
os.write(1,bytearray((77,85,88,0,10,13,255,17,19,49,13,10)))
NAME=sys.argv[1]
SOURCE=get(int("".join("%02x"%c for c in bytearray(get(4))),16))
for TEXT in zlib.decompress(SOURCE).split(bytes(bytearray(1))):exec(compile(TEXT,"mitogen-mux","exec"))
