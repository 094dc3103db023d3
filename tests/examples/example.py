import requests
import json

BASE_URL = 'http://localhost:8000'
EMAIL = 'user@example.com'
PASSWORD = 'SecurePass123!'

# Регистрация
register_data = {
    'email': EMAIL,
    'password': PASSWORD,
    'first_name': 'John',
    'last_name': 'Doe'
}
response = requests.post(f'{BASE_URL}/api/auth/register/', json=register_data)
print(response.json())

# Вход
login_data = {
    'email': EMAIL,
    'password': PASSWORD
}
response = requests.post(f'{BASE_URL}/api/auth/login/', json=login_data)
tokens = response.json()
access_token = tokens['access_token']

# Получить профиль
headers = {'Authorization': f'Bearer {access_token}'}
response = requests.get(f'{BASE_URL}/api/profile/me/', headers=headers)
profile = response.json()
print(f"Profile: {profile}")

# Обновить профиль
profile_data = {
    'bio': 'Updated bio',
    'timezone': 'Europe/Moscow'
}
response = requests.patch(
    f'{BASE_URL}/api/profile/me/',
    json=profile_data,
    headers=headers
)
print(response.json())

# Получить все пользователей
response = requests.get(
    f'{BASE_URL}/api/users/?search=john&role=freelancer',
    headers=headers
)
users = response.json()
print(f"Found users: {users['count']}")
