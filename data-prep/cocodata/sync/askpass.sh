#!/bin/sh
# Started by ssh with the text of a question: prints the password if that is what it asks for.
case "$1" in
*assword*) exec cat "$COCO_PASSWORD" ;;
esac
echo "no answer to: $1" >&2
exit 1
