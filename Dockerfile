# A server with its weights inside. Build and run, from this folder:
#   docker build -t flowtok .
#   docker run --rm --stop-timeout 125 -p 127.0.0.1:8000:8000 flowtok
# pip takes torch from where the machine's pip takes its packages. On most machines that is a build with CUDA, of several
# gigabytes; --build-arg PIP_EXTRA_INDEX_URL=... names another source, such as the one of torch's CPU builds.
FROM python:3.12-slim

ARG PIP_EXTRA_INDEX_URL=""
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN useradd --uid 10001 --create-home flowtok

WORKDIR /app
COPY pyproject.toml constraints.txt hatch_build.py README.md LICENSE ./
COPY src ./src
COPY models ./models
# The weights become part of the installed package.
RUN python -m pip install -c constraints.txt '.[serve]'

USER 10001
WORKDIR /home/flowtok
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
# A container is reached from outside only; what may reach it, -p says.
ENTRYPOINT ["flowtok", "serve"]
CMD ["emoji", "--host", "0.0.0.0"]
