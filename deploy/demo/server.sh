#!/bin/sh
# A web server somewhere: /file has 128 MiB, /file.sha256 its digest.
set -eu
. /demo/lib.sh
default_via 172.28.10.10
mkdir -p /srv/www
head -c 134217728 /dev/urandom >/srv/www/file
sha256sum </srv/www/file >/srv/www/file.sha256
cat >/run/nginx.conf <<END
pid /run/nginx.pid;
error_log stderr warn;
events {}
http {
    access_log off;
    sendfile on;
    server { listen 80; root /srv/www; }
}
END
exec nginx -c /run/nginx.conf -g 'daemon off;'
