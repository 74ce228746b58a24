# nodepass as a container that does not run as root:
#
#   docker build -t nodepass .
#   docker run -e NODEPASS_KEY -p 10101:10101 -p 8080:8080 nodepass "server://:10101/:8080?mode=1&tls=1"
#
# Hosts of a URL are the container's: listen on an empty host, publish the ports, and for UDP add "/udp".
#
# A master, whose state is in the volume; its instances listen on ports of the host:
#
#   docker run --network host -v nodepass:/var/lib/nodepass nodepass "master://127.0.0.1:10101"

FROM python:3.13-slim AS build
WORKDIR /src
COPY . .
# Everything is installed into one directory, which is all that the final image takes over.
RUN python -m venv /opt/nodepass && /opt/nodepass/bin/pip install --no-cache-dir .

FROM python:3.13-slim
# tls=2 checks the server against the system's roots.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home --home-dir /var/lib/nodepass nodepass
COPY --from=build /opt/nodepass /opt/nodepass
ENV PATH=/opt/nodepass/bin:$PATH PYTHONUNBUFFERED=1 NP_STATE=/var/lib/nodepass/nodepass.db
USER nodepass
WORKDIR /var/lib/nodepass
VOLUME /var/lib/nodepass
ENTRYPOINT ["nodepass"]
