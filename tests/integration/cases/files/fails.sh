#!/bin/sh
echo failing
exit 5
