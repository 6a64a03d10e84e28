#!/usr/bin/perl -w
# WANT_JSON
use strict;
open(my $file, '<', $ARGV[0]) or die "no arguments: $!";
my $text = join '', <$file>;
my ($word) = $text =~ /"word": *"([^"]*)"/;
print qq({"changed": false, "said": "$word", "warnings_on": ) . ($^W ? 'true' : 'false') . qq(, "arguments": ) . scalar(@ARGV) . "}\n";
