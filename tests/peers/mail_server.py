"""A real mail server that speaks TLS and wants a login; says when it is ready, then prints each mail that it takes as a
line of JSON.

Arguments: "starttls" or "tls", host, port, certificate, key, user, password.
"""

import json
import ssl
import sys
import time

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

way, host, port, certificate, key, user, password = sys.argv[1:]


def say(**what):
    print(json.dumps(what), flush=True)


class Handler:
    async def handle_DATA(self, server, session, envelope):
        say(
            sender=envelope.mail_from,
            recipients=envelope.rcpt_tos,
            text=envelope.content.decode(),
            encrypted=way == "tls" or session.ssl is not None,
            login=session.authenticated,
        )
        return "250 taken"


def authenticate(server, session, envelope, mechanism, login):
    return AuthResult(success=(login.login.decode(), login.password.decode()) == (user, password))


context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(certificate, key)
tls = {"tls_context": context, "require_starttls": True} if way == "starttls" else {"ssl_context": context}
controller = Controller(
    Handler(),
    hostname=host,
    port=int(port),
    authenticator=authenticate,
    auth_required=True,
    auth_require_tls=way == "starttls",
    **tls,
)
controller.start()
print("ready", flush=True)
while True:
    time.sleep(60)
