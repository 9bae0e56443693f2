#!/usr/bin/env bash
# Runs a command that fetches Python packages, with the certificates and the package index that the
# build was given as secrets, so that neither stays in the image:
#   ca_certificates  a bundle that holds the authority of an inspecting proxy or a private mirror
#   index_url        a package index to use in place of PyPI
set -euo pipefail
if [[ -s /run/secrets/ca_certificates ]]; then
    export SSL_CERT_FILE=/run/secrets/ca_certificates PIP_CERT=/run/secrets/ca_certificates
fi
if [[ -s /run/secrets/index_url ]]; then
    url=$(</run/secrets/index_url)
    export UV_DEFAULT_INDEX=$url PIP_INDEX_URL=$url
fi
exec "$@"
