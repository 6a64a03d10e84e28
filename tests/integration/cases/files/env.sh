#!/bin/sh
echo "$PLAY $TASK"
