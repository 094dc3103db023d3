const BASE_URL = 'http://localhost:8000';
const EMAIL = 'user@example.com';
const PASSWORD = 'SecurePass123!';

// Регистрация
async function register() {
  const response = await fetch(`${BASE_URL}/api/auth/register/`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({
      email: EMAIL,
      password: PASSWORD,
      first_name: 'John',
      last_name: 'Doe'
    })
  });
  return await response.json();
}

// Вход
async function login() {
  const response = await fetch(`${BASE_URL}/api/auth/login/`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({
      email: EMAIL,
      password: PASSWORD
    })
  });
  return await response.json();
}

// Получить профиль
async function getProfile(accessToken) {
  const response = await fetch(`${BASE_URL}/api/profile/me/`, {
    method: 'GET',
    headers: { 'Authorization': `Bearer ${accessToken}` }
  });
  return await response.json();
}

// Обновить профиль
async function updateProfile(accessToken, bio, timezone) {
  const response = await fetch(`${BASE_URL}/api/profile/me/`, {
    method: 'PATCH',
    headers: {
      'Authorization': `Bearer ${accessToken}`,
      'Content-Type': 'application/json'
    },
    body: JSON.stringify({
      bio,
      timezone
    })
  });
  return await response.json();
}

// Использование
(async () => {
  const registerResult = await register();
  console.log('Register result:', registerResult);

  const loginResult = await login();
  const { access_token } = loginResult;

  const profile = await getProfile(access_token);
  console.log('Profile:', profile);

  const updated = await updateProfile(
    access_token,
    'Updated bio',
    'Europe/Moscow'
  );
  console.log('Updated profile:', updated);
})();
