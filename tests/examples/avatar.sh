curl -X PATCH http://localhost:8000/api/profile/me/ \
  -H "Authorization: Bearer eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9..." \
  -F "bio=My new bio" \
  -F "avatar=@/path/to/avatar.jpg"
