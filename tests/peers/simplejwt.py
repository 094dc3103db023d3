"""Verifies tokens as a Django service does that uses SimpleJWT, and makes some of its own to compare with.

Reads {"key", "algorithm", "user_id", "access", "refresh"} from stdin, and writes what it found to stdout, as JSON. Fails where a
token is refused that should not be, or taken that should not be.
"""

import json
import sys

import django
import jwt
from django.conf import settings

given = json.load(sys.stdin)
settings.configure(
    SECRET_KEY="unused",
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "rest_framework"],
    SIMPLE_JWT={"SIGNING_KEY": given["key"], "ALGORITHM": given["algorithm"]},
    USE_TZ=True,
)
django.setup()

from rest_framework_simplejwt.authentication import JWTStatelessUserAuthentication
from rest_framework_simplejwt.exceptions import TokenError
from rest_framework_simplejwt.tokens import AccessToken, RefreshToken, UntypedToken

UntypedToken(given["access"])
UntypedToken(given["refresh"])
bearer = JWTStatelessUserAuthentication()
validated = bearer.get_validated_token(given["access"].encode())
for kind, token in [(AccessToken, given["refresh"]), (RefreshToken, given["access"])]:
    try:
        kind(token)
    except TokenError:
        continue
    sys.exit(f"{kind.__name__} takes a token of the other type")

own = RefreshToken()
own["user_id"] = given["user_id"]
json.dump(
    {
        "user_id": bearer.get_user(validated).id,
        "access": AccessToken(given["access"]).payload,
        "refresh": RefreshToken(given["refresh"]).payload,
        "pyjwt": jwt.decode(given["access"], given["key"], algorithms=[given["algorithm"]]),
        "own_access": str(own.access_token),
        "own_refresh": str(own),
    },
    sys.stdout,
)
